#include <absl/strings/str_cat.h>

#include "engine_adapter/llama/config_sections.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

// Keys that would change which layers have experts or how they are chosen.
absl::Status RefuseOtherValue(const JsonFields& fields, const char* key,
                              const nlohmann::json& only) {
  const nlohmann::json* value = fields.Find(key);
  if (value == nullptr || *value == only) return absl::OkStatus();
  return fields.Bad(key, absl::StrCat("only ", only.dump(), " is supported"));
}

absl::Status ReadShape(const JsonFields& fields, const char* count_key, ExpertLayers& experts) {
  ASSIGN_OR_RETURN(experts.num_experts, fields.Integer(count_key, 1, kExpertsMax));
  ASSIGN_OR_RETURN(experts.per_token,
                   fields.Integer("num_experts_per_tok", 1, experts.num_experts));
  ASSIGN_OR_RETURN(experts.intermediate_size,
                   fields.Integer("moe_intermediate_size", 1, kIntermediateMax));
  return absl::OkStatus();
}

absl::Status ReadQwen3Moe(const JsonFields& fields, ModelConfig& config) {
  RETURN_IF_ERROR(RefuseOtherValue(fields, "decoder_sparse_step", 1));
  RETURN_IF_ERROR(RefuseOtherValue(fields, "mlp_only_layers", nlohmann::json::array()));
  // transformers 5 writes num_local_experts, everybody else num_experts.
  const bool is_new = fields.Find("num_experts") == nullptr;
  if (!is_new) {
    RETURN_IF_ERROR(RefuseOtherValue(fields, "num_local_experts", *fields.Find("num_experts")));
  }
  ExpertLayers experts;
  RETURN_IF_ERROR(ReadShape(fields, is_new ? "num_local_experts" : "num_experts", experts));
  ASSIGN_OR_RETURN(experts.is_normalized, fields.BoolOr("norm_topk_prob", false));
  config.experts = experts;
  return absl::OkStatus();
}

absl::Status ReadDeepseekV2(const JsonFields& fields, ModelConfig& config) {
  RETURN_IF_ERROR(RefuseOtherValue(fields, "topk_method", "greedy"));
  RETURN_IF_ERROR(RefuseOtherValue(fields, "scoring_func", "softmax"));
  RETURN_IF_ERROR(RefuseOtherValue(fields, "norm_topk_prob", false));
  RETURN_IF_ERROR(RefuseOtherValue(fields, "moe_layer_freq", 1));
  ExpertLayers experts;
  RETURN_IF_ERROR(ReadShape(fields, "n_routed_experts", experts));
  ASSIGN_OR_RETURN(const int64_t shared, fields.Integer("n_shared_experts", 1, kSharedExpertsMax));
  experts.shared_intermediate_size = shared * experts.intermediate_size;
  ASSIGN_OR_RETURN(experts.first_layer,
                   fields.IntegerOr("first_k_dense_replace", 0, 0, config.num_layers));
  experts.scale = 1.0;
  if (fields.Find("routed_scaling_factor") != nullptr) {
    ASSIGN_OR_RETURN(experts.scale, fields.Number("routed_scaling_factor", 1e-3, 1e3));
  }
  config.experts = experts;
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadExperts(const JsonFields& fields, ModelConfig& config) {
  switch (config.family) {
    case ModelFamily::kQwen3Moe:
      return ReadQwen3Moe(fields, config);
    case ModelFamily::kDeepseekV2:
      return ReadDeepseekV2(fields, config);
    case ModelFamily::kLlama:
    case ModelFamily::kMistral:
    case ModelFamily::kQwen2:
    case ModelFamily::kQwen3:
      break;
  }
  return absl::OkStatus();
}

}  // namespace kvstore::engine
