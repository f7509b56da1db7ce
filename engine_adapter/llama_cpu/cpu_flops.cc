#include "engine_adapter/llama_cpu/cpu_backend.h"

namespace kvstore::engine {
namespace {

struct AttentionFlops {
  double project;  // a row: queries, keys, values
  double output;   // a row: from what attention gave to the residual stream
  double a_key;    // a row and key it sees: scores and weighted values of all heads
};

AttentionFlops OfAttention(const ModelConfig& config) {
  const auto hidden = static_cast<double>(config.hidden_size);
  const auto heads = static_cast<double>(config.num_heads);
  const auto query = static_cast<double>(config.query_size());
  const double output = 2 * static_cast<double>(config.attended_size()) * hidden;
  if (!config.latent.has_value()) {
    return {2 * hidden * (query + 2 * static_cast<double>(config.kv_size())), output, 4 * query};
  }
  // The absorbed form: see latent_attention.cc.
  const LatentAttention& latent = *config.latent;
  const auto rank = static_cast<double>(latent.kv_rank);
  const auto cached = static_cast<double>(latent.cached_size());
  const double absorb = 2 * heads * rank * static_cast<double>(latent.nope_dim);
  const double up = 2 * heads * rank * static_cast<double>(latent.value_dim);
  return {2 * hidden * (query + cached) + absorb, output + up, 2 * heads * (cached + rank)};
}

// gate, up and down: 6 H I; with experts those that a row goes through, and the router.
double OfFeedForward(const ModelConfig& config, int64_t layer) {
  const auto hidden = static_cast<double>(config.hidden_size);
  if (!config.HasExperts(layer)) {
    return 6 * hidden * static_cast<double>(config.intermediate_size);
  }
  const ExpertLayers& experts = *config.experts;
  const auto width = static_cast<double>(experts.per_token * experts.intermediate_size +
                                         experts.shared_intermediate_size);
  return 6 * hidden * width + 2 * hidden * static_cast<double>(experts.num_experts);
}

}  // namespace

// Every row goes through every layer, except that in the last one only one row goes on behind its
// keys and values. Once: lm_head 2 V H.
double ForwardFlops(const ModelConfig& config, int64_t first_position, int64_t num_tokens) {
  const AttentionFlops attention = OfAttention(config);
  const auto tokens = static_cast<double>(num_tokens);
  const auto last_key_count = static_cast<double>(first_position + num_tokens);
  const double visible_keys =
      tokens * static_cast<double>(first_position) + tokens * (tokens + 1) / 2;
  double total =
      2 * static_cast<double>(config.vocab_size) * static_cast<double>(config.hidden_size);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const bool is_last = layer + 1 == config.num_layers;
    const double rows = is_last ? 1 : tokens;
    total += tokens * attention.project;
    total += rows * (attention.output + OfFeedForward(config, layer));
    total += attention.a_key * (is_last ? last_key_count : visible_keys);
  }
  return total;
}

}  // namespace kvstore::engine
