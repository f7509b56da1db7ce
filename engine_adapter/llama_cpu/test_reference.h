// The forward pass as a textbook has it: double precision, whole sequence at once, no cache, no
// blocking.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
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
    return Norm(x, weight, config_.rms_norm_eps);
  }
  static Row Norm(const Row& x, const TensorView& weight, double epsilon) {
    const std::vector<float> w = All(weight);
    double squares = 0;
    for (const double value : x) squares += value * value;
    const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + epsilon);
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
        const double factor = config_.rope_scaling.attention_factor;
        const double c = std::cos(angle) * factor, s = std::sin(angle) * factor;
        x[head * dim + i] = part[i] * c - part[i + half] * s;
        x[head * dim + i + half] = part[i + half] * c + part[i] * s;
      }
    }
  }

  void RunLayer(const LayerWeights& layer, std::vector<Row>& x) const {
    std::vector<Row> normed;
    for (const Row& row : x) normed.push_back(Norm(row, layer.input_norm));
    const std::vector<Row> attended =
        layer.latent.has_value() ? LatentAttend(layer, normed) : GroupedAttend(layer, normed);
    for (size_t t = 0; t < x.size(); ++t) {
      AddTo(x[t], Multiply(layer.o_proj, attended[t], nullptr));
      const Row ffn = Norm(x[t], layer.post_attention_norm);
      AddTo(x[t], layer.experts.has_value()
                      ? Experts(*layer.experts, ffn)
                      : Swiglu(layer.gate_proj, layer.up_proj, layer.down_proj, ffn));
    }
  }

  static Row Swiglu(const TensorView& gate_proj, const TensorView& up_proj,
                    const TensorView& down_proj, const Row& x) {
    Row gate = Multiply(gate_proj, x, nullptr);
    const Row up = Multiply(up_proj, x, nullptr);
    for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    return Multiply(down_proj, gate, nullptr);
  }
  static Row Swiglu(const SwigluWeights& weights, const Row& x) {
    return Swiglu(weights.gate_proj, weights.up_proj, weights.down_proj, x);
  }

  // Experts in the order of falling weight, as a textbook has it.
  Row Experts(const ExpertWeights& weights, const Row& x) const {
    const ExpertLayers& shape = *config_.experts;
    Row share = Multiply(weights.router, x, nullptr);
    double total = 0;
    for (double& value : share) total += value = std::exp(value);
    std::vector<size_t> order(share.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return share[a] > share[b]; });
    order.resize(static_cast<size_t>(shape.per_token));
    if (shape.is_normalized) {
      total = 0;
      for (const size_t expert : order) total += share[expert];
    }
    Row sum(x.size());
    for (const size_t expert : order) {
      const Row given = Swiglu(weights.experts[expert], x);
      for (size_t i = 0; i < sum.size(); ++i) {
        sum[i] += shape.scale * share[expert] / total * given[i];
      }
    }
    if (weights.shared.has_value()) AddTo(sum, Swiglu(*weights.shared, x));
    return sum;
  }

  std::vector<Row> GroupedAttend(const LayerWeights& layer, const std::vector<Row>& normed) const {
    std::vector<Row> keys, values, out;
    const auto bias = [](const std::optional<TensorView>& b) { return b ? &*b : nullptr; };
    for (size_t t = 0; t < normed.size(); ++t) {
      Row q = Multiply(layer.q_proj, normed[t], bias(layer.q_bias));
      keys.push_back(Multiply(layer.k_proj, normed[t], bias(layer.k_bias)));
      values.push_back(Multiply(layer.v_proj, normed[t], bias(layer.v_bias)));
      PrepareHeads(q, static_cast<int64_t>(t), layer.q_norm);
      PrepareHeads(keys.back(), static_cast<int64_t>(t), layer.k_norm);
      out.push_back(Attend(q, keys, values));
    }
    return out;
  }

  // Keys and values of every head made from the latent vector (the form that is not absorbed), pairs
  // of the rotation side by side as in the files.
  std::vector<Row> LatentAttend(const LayerWeights& layer, const std::vector<Row>& normed) const {
    const LatentAttention& shape = *config_.latent;
    const int64_t nope = shape.nope_dim, width = nope + shape.value_dim;
    std::vector<Row> ups, shared_keys, out;
    for (size_t t = 0; t < normed.size(); ++t) {
      Row latent = Multiply(layer.latent->kv_down, normed[t], nullptr);
      Row shared(latent.begin() + shape.kv_rank, latent.end());
      latent.resize(static_cast<size_t>(shape.kv_rank));
      RotatePairs(shared.data(), static_cast<int64_t>(t));
      shared_keys.push_back(shared);
      ups.push_back(
          Multiply(layer.latent->kv_up, Norm(latent, layer.latent->kv_norm, 1e-6), nullptr));
      Row query = Multiply(layer.q_proj, normed[t], nullptr), attended;
      for (int64_t head = 0; head < config_.num_heads; ++head) {
        double* const q = query.data() + head * config_.head_dim;
        RotatePairs(q + nope, static_cast<int64_t>(t));
        std::vector<Row> keys, values;
        for (size_t j = 0; j <= t; ++j) {
          const double* const up = ups[j].data() + head * width;
          keys.emplace_back(up, up + nope);
          keys.back().insert(keys.back().end(), shared_keys[j].begin(), shared_keys[j].end());
          values.emplace_back(up + nope, up + width);
        }
        const Row value = SoftmaxOf(Row(q, q + config_.head_dim), keys, values);
        attended.insert(attended.end(), value.begin(), value.end());
      }
      out.push_back(attended);
    }
    return out;
  }

  void RotatePairs(double* x, int64_t position) const {
    for (int64_t i = 0; i < rope_.half(); ++i) {
      const double angle =
          static_cast<double>(position) * rope_.inverse_frequencies()[static_cast<size_t>(i)];
      const double factor = config_.rope_scaling.attention_factor;
      const double c = std::cos(angle) * factor, s = std::sin(angle) * factor;
      const double even = x[2 * i], odd = x[2 * i + 1];
      x[2 * i] = even * c - odd * s;
      x[2 * i + 1] = odd * c + even * s;
    }
  }

  // Weighted values of one head.
  Row SoftmaxOf(const Row& query, const std::vector<Row>& keys,
                const std::vector<Row>& values) const {
    const double scale = config_.rope_scaling.score_factor / std::sqrt(config_.head_dim);
    Row weights, out(values.front().size());
    double total = 0;
    for (const Row& key : keys) {
      double score = 0;
      for (size_t d = 0; d < key.size(); ++d) score += query[d] * key[d];
      weights.push_back(std::exp(score * scale));
      total += weights.back();
    }
    for (size_t j = 0; j < keys.size(); ++j) {
      for (size_t d = 0; d < out.size(); ++d) out[d] += weights[j] / total * values[j][d];
    }
    return out;
  }

  static void AddTo(Row& x, const Row& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  Row Attend(const Row& q, const std::vector<Row>& keys, const std::vector<Row>& values) const {
    const int64_t dim = config_.head_dim, group = config_.num_heads / config_.num_kv_heads;
    const auto heads_of = [dim](const std::vector<Row>& rows, int64_t kv) {
      std::vector<Row> heads;
      for (const Row& row : rows) heads.emplace_back(row.begin() + kv, row.begin() + kv + dim);
      return heads;
    };
    Row out;
    for (int64_t head = 0; head < config_.num_heads; ++head) {
      const int64_t kv = head / group * dim;
      const Row query(q.begin() + head * dim, q.begin() + (head + 1) * dim);
      const Row value = SoftmaxOf(query, heads_of(keys, kv), heads_of(values, kv));
      out.insert(out.end(), value.begin(), value.end());
    }
    return out;
  }

  const ModelConfig& config_;
  const ModelWeights& weights_;
  const RopeTable rope_;
};

}  // namespace kvstore::engine
