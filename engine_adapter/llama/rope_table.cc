#include "engine_adapter/llama/rope_table.h"

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
    case RopeScaling::Kind::kNone:
      return frequency;
    case RopeScaling::Kind::kLinear:
      return frequency / scaling.factor;
    case RopeScaling::Kind::kLlama3:
      return ScaleLlama3(frequency, scaling);
  }
  return frequency;
}

}  // namespace

RopeTable::RopeTable(const ModelConfig& config) {
  for (int64_t i = 0; i < config.head_dim / 2; ++i) {
    const double exponent = static_cast<double>(2 * i) / static_cast<double>(config.head_dim);
    const auto power = static_cast<float>(std::pow(config.rope_theta, exponent));
    const float frequency = 1.0f / power;
    inverse_frequencies_.push_back(static_cast<float>(Scale(frequency, config.rope_scaling)));
  }
}

void RopeTable::Fill(int64_t position, float* cosine, float* sine) const {
  for (size_t i = 0; i < inverse_frequencies_.size(); ++i) {
    const float angle = static_cast<float>(position) * inverse_frequencies_[i];
    cosine[i] = static_cast<float>(std::cos(static_cast<double>(angle)));
    sine[i] = static_cast<float>(std::sin(static_cast<double>(angle)));
  }
}

}  // namespace kvstore::engine
