// The forward pass as a textbook has it: double precision, whole sequence at once, no cache, no
// blocking.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "engine_adapter/llama/model_config.h"
#include "engine_adapter/llama/model_weights.h"
#include "engine_adapter/llama/rope_table.h"

namespace kvstore::engine {

class ReferenceModel {
 public:
  ReferenceModel(const ModelConfig& config, const ModelWeights& weights)
      : config_(config), weights_(weights), rope_(config) {}

  // Logits of every position, [tokens][vocab].
  std::vector<std::vector<double>> Logits(const std::vector<uint32_t>& tokens) const {
    std::vector<Row> x;
    const std::vector<float> embedding = All(weights_.embedding());
    for (const uint32_t id : tokens) {
      const auto* row = embedding.data() + id * config_.hidden_size;
      x.emplace_back(row, row + config_.hidden_size);
    }
    for (const LayerWeights& layer : weights_.layers()) RunLayer(layer, x);
    std::vector<std::vector<double>> logits;
    for (const Row& row : x) {
      logits.push_back(Multiply(weights_.lm_head(), Norm(row, weights_.final_norm()), nullptr));
    }
    return logits;
  }

 private:
  using Row = std::vector<double>;

  static std::vector<float> All(const TensorView& tensor) {
    std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
    CopyAsFloat(tensor, 0, values);
    return values;
  }

  static Row Multiply(const TensorView& matrix, const Row& x, const TensorView* bias) {
    const std::vector<float> w = All(matrix);
    Row y(static_cast<size_t>(matrix.shape[0]));
    for (size_t i = 0; i < y.size(); ++i) {
      for (size_t j = 0; j < x.size(); ++j) y[i] += w[i * x.size() + j] * x[j];
      if (bias != nullptr) y[i] += All(*bias)[i];
    }
    return y;
  }

  Row Norm(const Row& x, const TensorView& weight) const {
    const std::vector<float> w = All(weight);
    double squares = 0;
    for (const double value : x) squares += value * value;
    const double scale =
        1 / std::sqrt(squares / static_cast<double>(x.size()) + config_.rms_norm_eps);
    Row y(x.size());
    for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * w[i];
    return y;
  }

  // Heads of `x` at `position`: optional norm, then rotation.
  void PrepareHeads(Row& x, int64_t position, const std::optional<TensorView>& norm) const {
    const auto dim = static_cast<size_t>(config_.head_dim), half = dim / 2;
    for (size_t head = 0; head < x.size() / dim; ++head) {
      Row part(x.begin() + static_cast<int64_t>(head * dim),
               x.begin() + static_cast<int64_t>((head + 1) * dim));
      if (norm.has_value()) part = Norm(part, *norm);
      for (size_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(position) * rope_.inverse_frequencies()[i];
        x[head * dim + i] = part[i] * std::cos(angle) - part[i + half] * std::sin(angle);
        x[head * dim + i + half] = part[i + half] * std::cos(angle) + part[i] * std::sin(angle);
      }
    }
  }

  void RunLayer(const LayerWeights& layer, std::vector<Row>& x) const {
    std::vector<Row> keys, values;
    const auto bias = [](const std::optional<TensorView>& b) { return b ? &*b : nullptr; };
    for (size_t t = 0; t < x.size(); ++t) {
      const Row normed = Norm(x[t], layer.input_norm);
      Row q = Multiply(layer.q_proj, normed, bias(layer.q_bias));
      keys.push_back(Multiply(layer.k_proj, normed, bias(layer.k_bias)));
      values.push_back(Multiply(layer.v_proj, normed, bias(layer.v_bias)));
      PrepareHeads(q, static_cast<int64_t>(t), layer.q_norm);
      PrepareHeads(keys.back(), static_cast<int64_t>(t), layer.k_norm);
      AddTo(x[t], Multiply(layer.o_proj, Attend(q, keys, values), nullptr));
      const Row ffn = Norm(x[t], layer.post_attention_norm);
      Row gate = Multiply(layer.gate_proj, ffn, nullptr);
      const Row up = Multiply(layer.up_proj, ffn, nullptr);
      for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
      AddTo(x[t], Multiply(layer.down_proj, gate, nullptr));
    }
  }

  static void AddTo(Row& x, const Row& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  Row Attend(const Row& q, const std::vector<Row>& keys, const std::vector<Row>& values) const {
    const int64_t dim = config_.head_dim, group = config_.num_heads / config_.num_kv_heads;
    Row out(q.size());
    for (int64_t head = 0; head < config_.num_heads; ++head) {
      const int64_t kv = head / group * dim;
      Row weights(keys.size());
      double total = 0;
      for (size_t j = 0; j < keys.size(); ++j) {
        double score = 0;
        for (int64_t d = 0; d < dim; ++d) score += q[head * dim + d] * keys[j][kv + d];
        weights[j] = std::exp(score / std::sqrt(static_cast<double>(dim)));
        total += weights[j];
      }
      for (size_t j = 0; j < keys.size(); ++j) {
        for (int64_t d = 0; d < dim; ++d) {
          out[head * dim + d] += weights[j] / total * values[j][kv + d];
        }
      }
    }
    return out;
  }

  const ModelConfig& config_;
  const ModelWeights& weights_;
  const RopeTable rope_;
};

}  // namespace kvstore::engine
