// config.json of a model from the internet.
//
//   input: JSON text
//
// Promises: every number of an accepted model is within its bounds, sizes divide as the arithmetic
// needs, and products of three do not overflow; an error is InvalidArgument of bounded length.
#include <cmath>

#include "engine_adapter/llama/model_config.h"
#include "tests/fuzz/fuzz_input.h"

namespace kvstore::engine {
namespace {

bool Fits(int64_t a, int64_t b, int64_t c) {
  int64_t product = 0;
  return !__builtin_mul_overflow(a, b, &product) && !__builtin_mul_overflow(product, c, &product);
}

void CheckLatent(const ModelConfig& config, const LatentAttention& latent) {
  REQUIRE(latent.kv_rank >= 1 && latent.nope_dim >= 1 && latent.value_dim >= 1);
  REQUIRE(config.num_kv_heads == config.num_heads);
  REQUIRE(config.head_dim == latent.nope_dim + latent.rope_dim);
  REQUIRE(Fits(config.max_positions, latent.cached_size(), config.num_layers));
  REQUIRE(Fits(config.num_heads, latent.nope_dim + latent.value_dim, latent.kv_rank));
  REQUIRE(Fits(config.attended_size(), config.hidden_size, config.num_layers));
}

void CheckExperts(const ModelConfig& config, const ExpertLayers& experts) {
  REQUIRE(experts.per_token >= 1 && experts.per_token <= experts.num_experts);
  REQUIRE(experts.first_layer >= 0 && experts.first_layer <= config.num_layers);
  REQUIRE(experts.scale > 0 && std::isfinite(experts.scale));
  REQUIRE(
      Fits(experts.num_experts * experts.intermediate_size, config.hidden_size, config.num_layers));
  REQUIRE(Fits(experts.shared_intermediate_size, config.hidden_size, config.num_layers));
}

void CheckConfig(const ModelConfig& config) {
  REQUIRE(ModelFamilyName(config.family) != "unknown");
  REQUIRE(config.num_layers >= 1 && config.hidden_size >= 1 && config.intermediate_size >= 1);
  REQUIRE(config.num_kv_heads >= 1 && config.num_heads % config.num_kv_heads == 0);
  REQUIRE(config.rope_dim() >= 2 && config.rope_dim() % 2 == 0 && config.rope_dim() <= 512);
  REQUIRE(config.head_dim >= config.rope_dim() && config.head_dim <= 1024);
  REQUIRE(config.vocab_size >= 1 && config.max_positions >= 1);
  REQUIRE(config.rms_norm_eps > 0 && config.rope_theta >= 1);
  REQUIRE(Fits(config.vocab_size, config.hidden_size, config.num_layers));
  REQUIRE(Fits(config.intermediate_size, config.hidden_size, config.num_layers));
  REQUIRE(Fits(config.query_size(), config.hidden_size, config.num_layers));
  REQUIRE(Fits(config.max_positions, config.kv_size(), config.num_layers));
  if (config.latent.has_value()) CheckLatent(config, *config.latent);
  if (config.experts.has_value()) CheckExperts(config, *config.experts);
  const RopeScaling& scaling = config.rope_scaling;
  REQUIRE(scaling.factor >= 1 && scaling.factor <= 1e6);
  if (scaling.kind == RopeScaling::Kind::kLlama3) {
    REQUIRE(scaling.high_freq_factor > scaling.low_freq_factor);
    REQUIRE(scaling.original_max_positions >= 1);
  }
  if (scaling.kind == RopeScaling::Kind::kYarn) {
    REQUIRE(scaling.beta_fast > scaling.beta_slow && scaling.original_max_positions >= 1);
    REQUIRE(config.rope_theta > 1 && std::isfinite(scaling.score_factor));
    REQUIRE(scaling.attention_factor > 0 && std::isfinite(scaling.attention_factor));
  }
  REQUIRE(config.eos_token_ids.size() <= 64 && config.config_sha256.size() == 64);
  for (const uint32_t token : config.eos_token_ids) REQUIRE(token < config.vocab_size);
  if (config.bos_token_id.has_value()) REQUIRE(*config.bos_token_id < config.vocab_size);
}

}  // namespace
}  // namespace kvstore::engine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace kvstore;
  const std::string text(reinterpret_cast<const char*>(data), bytes);
  const auto config = engine::ParseModelConfig(text, "config.json");
  if (config.ok()) {
    engine::CheckConfig(*config);
  } else {
    REQUIRE(absl::IsInvalidArgument(config.status()) && config.status().message().size() < 1024);
  }
  return 0;
}
