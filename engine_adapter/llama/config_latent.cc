#include <absl/strings/str_cat.h>

#include "engine_adapter/llama/config_sections.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {

absl::Status ReadLatentAttention(const JsonFields& fields, ModelConfig& config) {
  if (fields.Find("q_lora_rank") != nullptr) {
    return fields.Bad("q_lora_rank", "only null is supported: queries that are not compressed");
  }
  if (config.num_kv_heads != config.num_heads) {
    return fields.Bad("num_key_value_heads",
                      absl::StrCat("with latent attention, num_attention_heads (", config.num_heads,
                                   ") is valid"));
  }
  LatentAttention latent;
  ASSIGN_OR_RETURN(latent.kv_rank, fields.Integer("kv_lora_rank", 1, kLatentMax));
  ASSIGN_OR_RETURN(latent.nope_dim, fields.Integer("qk_nope_head_dim", 1, kHeadDimMax));
  ASSIGN_OR_RETURN(latent.rope_dim, fields.Integer("qk_rope_head_dim", 2, kHeadDimMax));
  ASSIGN_OR_RETURN(latent.value_dim, fields.Integer("v_head_dim", 1, kHeadDimMax));
  if (latent.rope_dim % 2 != 0) {
    return fields.Bad("qk_rope_head_dim", "it cannot be rotated; an even number is valid");
  }
  config.head_dim = latent.nope_dim + latent.rope_dim;
  config.latent = latent;
  return absl::OkStatus();
}

}  // namespace kvstore::engine
