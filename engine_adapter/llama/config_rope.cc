#include <absl/strings/str_cat.h>

#include <cmath>

#include "engine_adapter/llama/config_sections.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

using nlohmann::json;

absl::Status ReadOriginalPositions(const JsonFields& rope, RopeScaling& scaling) {
  ASSIGN_OR_RETURN(scaling.original_max_positions,
                   rope.Integer("original_max_position_embeddings", 1, kPositionsMax));
  return absl::OkStatus();
}

absl::Status ReadLlama3(const JsonFields& rope, RopeScaling& scaling) {
  ASSIGN_OR_RETURN(scaling.low_freq_factor, rope.Number("low_freq_factor", 1e-3, 1e6));
  ASSIGN_OR_RETURN(scaling.high_freq_factor, rope.Number("high_freq_factor", 1e-3, 1e6));
  if (scaling.high_freq_factor <= scaling.low_freq_factor) {
    return rope.Bad("high_freq_factor", "a number above low_freq_factor is valid");
  }
  return ReadOriginalPositions(rope, scaling);
}

absl::StatusOr<double> NumberOr(const JsonFields& rope, const char* key, double if_absent,
                                double min, double max) {
  if (rope.Find(key) == nullptr) return if_absent;
  return rope.Number(key, min, max);
}

// How much yarn sharpens attention for a context stretched by `factor`.
double YarnSharpening(double factor, double weight) { return 0.1 * weight * std::log(factor) + 1; }

absl::Status ReadYarn(const JsonFields& rope, ModelConfig& config) {
  RopeScaling& scaling = config.rope_scaling;
  ASSIGN_OR_RETURN(scaling.beta_fast, NumberOr(rope, "beta_fast", 32, 1e-3, 1e6));
  ASSIGN_OR_RETURN(scaling.beta_slow, NumberOr(rope, "beta_slow", 1, 1e-3, 1e6));
  if (scaling.beta_slow >= scaling.beta_fast) {
    return rope.Bad("beta_fast", "a number above beta_slow is valid");
  }
  if (config.rope_theta <= 1) return rope.Bad("rope_type", "with yarn, rope_theta is above 1");
  ASSIGN_OR_RETURN(const bool truncate, rope.BoolOr("truncate", true));
  if (!truncate) return rope.Bad("truncate", "only true is supported");
  ASSIGN_OR_RETURN(const double mscale, NumberOr(rope, "mscale", 0, 0, 1e3));
  ASSIGN_OR_RETURN(const double mscale_all, NumberOr(rope, "mscale_all_dim", 0, 0, 1e3));
  const bool has_both = mscale != 0 && mscale_all != 0;
  const double inferred =
      has_both ? YarnSharpening(scaling.factor, mscale) / YarnSharpening(scaling.factor, mscale_all)
               : YarnSharpening(scaling.factor, 1);
  ASSIGN_OR_RETURN(scaling.attention_factor,
                   NumberOr(rope, "attention_factor", inferred, 1e-3, 1e3));
  if (config.family == ModelFamily::kDeepseekV2 && mscale_all != 0) {
    const double sharpening = YarnSharpening(scaling.factor, mscale_all);
    scaling.score_factor = sharpening * sharpening;
  }
  return ReadOriginalPositions(rope, scaling);
}

absl::Status ReadScaling(const JsonFields& rope, ModelConfig& config) {
  // Old files say "type", newer ones "rope_type"; both mean the same.
  const char* type_key = rope.Find("rope_type") != nullptr ? "rope_type" : "type";
  ASSIGN_OR_RETURN(const std::string type, rope.StringOr(type_key, ""));
  RopeScaling& scaling = config.rope_scaling;
  if (type == "default") return absl::OkStatus();
  if (type != "linear" && type != "llama3" && type != "yarn") {
    return rope.Bad(type_key, "this engine knows default, linear, llama3, yarn");
  }
  if (config.family == ModelFamily::kDeepseekV2 && type != "yarn") {
    return rope.Bad(type_key, "for deepseek_v2 this engine knows default and yarn");
  }
  ASSIGN_OR_RETURN(scaling.factor, rope.Number("factor", 1, 1e6));
  if (type == "yarn") {
    scaling.kind = RopeScaling::Kind::kYarn;
    return ReadYarn(rope, config);
  }
  if (type == "llama3") {
    scaling.kind = RopeScaling::Kind::kLlama3;
    return ReadLlama3(rope, scaling);
  }
  scaling.kind = RopeScaling::Kind::kLinear;
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadRope(const JsonFields& fields, std::string_view file_name, ModelConfig& config) {
  const bool is_new = fields.Find("rope_parameters") != nullptr;
  if (is_new && fields.Find("rope_scaling") != nullptr &&
      *fields.Find("rope_scaling") != *fields.Find("rope_parameters")) {
    return fields.Bad("rope_scaling", "it contradicts rope_parameters; only one may be given");
  }
  const char* object_key = is_new ? "rope_parameters" : "rope_scaling";
  const json* object = fields.Find(object_key);
  if (object != nullptr && !object->is_object()) {
    return fields.Bad(object_key, "an object or null is valid");
  }
  const json empty = json::object();
  const JsonFields rope(object != nullptr ? *object : empty, file_name,
                        absl::StrCat(object_key, "."));
  const bool theta_inside = rope.Find("rope_theta") != nullptr;
  const JsonFields& theta_owner = theta_inside ? rope : fields;
  ASSIGN_OR_RETURN(config.rope_theta, theta_owner.Number("rope_theta", 1, 1e12));
  if (theta_inside && fields.Find("rope_theta") != nullptr &&
      *fields.Find("rope_theta") != *rope.Find("rope_theta")) {
    return fields.Bad("rope_theta", absl::StrCat("it contradicts ", object_key, ".rope_theta"));
  }
  if (rope.Find("partial_rotary_factor") != nullptr) {
    ASSIGN_OR_RETURN(const double partial, rope.Number("partial_rotary_factor", 0, 1));
    if (partial != 1.0) return rope.Bad("partial_rotary_factor", "only 1 is supported");
  }
  if (object == nullptr) return absl::OkStatus();
  return ReadScaling(rope, config);
}

}  // namespace kvstore::engine
