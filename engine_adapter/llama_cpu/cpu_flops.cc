#include "engine_adapter/llama_cpu/cpu_backend.h"

namespace kvstore::engine {

// Per token and layer: qkv 2 H (Q + 2 KV); then, except in the last layer where only one row goes
// on: o 2 Q H, gate and up 4 H I, down 2 I H, attention 4 Q for every visible key (scores and
// weighted values). Once: lm_head 2 V H.
double ForwardFlops(const ModelConfig& config, int64_t first_position, int64_t num_tokens) {
  const auto hidden = static_cast<double>(config.hidden_size);
  const auto query = static_cast<double>(config.query_size());
  const double qkv = 2 * hidden * (query + 2 * static_cast<double>(config.kv_size()));
  const double rest =
      2 * query * hidden + 6 * hidden * static_cast<double>(config.intermediate_size);
  const auto tokens = static_cast<double>(num_tokens);
  const auto last_key_count = static_cast<double>(first_position + num_tokens);
  const double visible_keys =
      tokens * static_cast<double>(first_position) + tokens * (tokens + 1) / 2;
  const double whole_layer = tokens * (qkv + rest) + 4 * query * visible_keys;
  const double last_layer = tokens * qkv + rest + 4 * query * last_key_count;
  const double lm_head = 2 * static_cast<double>(config.vocab_size) * hidden;
  return static_cast<double>(config.num_layers - 1) * whole_layer + last_layer + lm_head;
}

}  // namespace kvstore::engine
