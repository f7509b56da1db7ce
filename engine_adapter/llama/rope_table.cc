#include "engine_adapter/llama/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace kvstore::engine {
namespace {

double ScaleLlama3(double frequency, const RopeScaling& scaling) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const auto old_context = static_cast<double>(scaling.original_max_positions);
  if (wavelength > old_context / scaling.low_freq_factor) return frequency / scaling.factor;
  if (wavelength < old_context / scaling.high_freq_factor) return frequency;
  const double smooth = (old_context / wavelength - scaling.low_freq_factor) /
                        (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1 - smooth) * frequency / scaling.factor + smooth * frequency;
}

double Scale(double frequency, const RopeScaling& scaling) {
  switch (scaling.kind) {
    case RopeScaling::Kind::kLinear:
      return frequency / scaling.factor;
    case RopeScaling::Kind::kLlama3:
      return ScaleLlama3(frequency, scaling);
    case RopeScaling::Kind::kNone:
    case RopeScaling::Kind::kYarn:  // by index, not by frequency: see YarnRamp
      break;
  }
  return frequency;
}

// The share of frequency i that is divided by the factor: 0 for fast ones, 1 for slow ones.
class YarnRamp {
 public:
  YarnRamp(const ModelConfig& config, int64_t dim) {
    const RopeScaling& scaling = config.rope_scaling;
    const auto index_of = [&](double turns) {
      const double wavelength =
          static_cast<double>(scaling.original_max_positions) / (turns * 2 * std::numbers::pi);
      return static_cast<double>(dim) * std::log(wavelength) / (2 * std::log(config.rope_theta));
    };
    low_ = std::max(std::floor(index_of(scaling.beta_fast)), 0.0);
    high_ = std::min(std::ceil(index_of(scaling.beta_slow)), static_cast<double>(dim - 1));
    if (low_ == high_) high_ += 0.001;
  }

  float At(int64_t index) const {
    const auto part =
        static_cast<float>(static_cast<double>(index) - low_) / static_cast<float>(high_ - low_);
    return std::clamp(part, 0.0f, 1.0f);
  }

 private:
  double low_ = 0;
  double high_ = 0;
};

}  // namespace

RopeTable::RopeTable(const ModelConfig& config) {
  const int64_t dim = config.rope_dim();
  const RopeScaling& scaling = config.rope_scaling;
  const bool is_yarn = scaling.kind == RopeScaling::Kind::kYarn;
  for (int64_t i = 0; i < dim / 2; ++i) {
    const double exponent = static_cast<double>(2 * i) / static_cast<double>(dim);
    const auto power = static_cast<float>(std::pow(config.rope_theta, exponent));
    const float frequency = 1.0f / power;
    if (!is_yarn) {
      inverse_frequencies_.push_back(static_cast<float>(Scale(frequency, scaling)));
      continue;
    }
    const float slow = YarnRamp(config, dim).At(i);
    const float stretched = 1.0f / (static_cast<float>(scaling.factor) * power);
    inverse_frequencies_.push_back(stretched * slow + frequency * (1.0f - slow));
  }
  attention_factor_ = static_cast<float>(scaling.attention_factor);
}

void RopeTable::Fill(int64_t position, float* cosine, float* sine) const {
  for (size_t i = 0; i < inverse_frequencies_.size(); ++i) {
    const float angle = static_cast<float>(position) * inverse_frequencies_[i];
    cosine[i] = static_cast<float>(std::cos(static_cast<double>(angle))) * attention_factor_;
    sine[i] = static_cast<float>(std::sin(static_cast<double>(angle))) * attention_factor_;
  }
}

}  // namespace kvstore::engine
