#include "engine_adapter/llama/model_config.h"

#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>
#include <openssl/sha.h>

#include "engine_adapter/json/json_file.h"
#include "engine_adapter/llama/config_sections.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"

namespace kvstore::engine {
namespace {

using nlohmann::json;

constexpr size_t kConfigBytesMax = 1 << 20;
constexpr size_t kEosTokensMax = 64;

struct FamilyNames {
  ModelFamily family;
  const char* model_type;
  const char* architecture;
};
constexpr FamilyNames kFamilies[] = {
    {ModelFamily::kLlama, "llama", "LlamaForCausalLM"},
    {ModelFamily::kMistral, "mistral", "MistralForCausalLM"},
    {ModelFamily::kQwen2, "qwen2", "Qwen2ForCausalLM"},
    {ModelFamily::kQwen3, "qwen3", "Qwen3ForCausalLM"},
    {ModelFamily::kQwen3Moe, "qwen3_moe", "Qwen3MoeForCausalLM"},
    {ModelFamily::kDeepseekV2, "deepseek_v2", "DeepseekV2ForCausalLM"},
};

absl::StatusOr<ModelFamily> ReadFamily(const JsonFields& fields) {
  ASSIGN_OR_RETURN(const std::string type, fields.StringOr("model_type", ""));
  for (const FamilyNames& names : kFamilies) {
    if (type != names.model_type) continue;
    const json* architectures = fields.Find("architectures");
    if (architectures != nullptr && *architectures != json::array({names.architecture})) {
      return fields.Bad("architectures",
                        absl::StrCat("[\"", names.architecture, "\"] is valid for ", type));
    }
    return names.family;
  }
  return fields.Bad("model_type",
                    "this engine runs llama, mistral, qwen2, qwen3, qwen3_moe, deepseek_v2");
}

// Refuses what changes the arithmetic in a way the forward pass does not know.
absl::Status RefuseUnsupported(const JsonFields& fields, ModelFamily family) {
  ASSIGN_OR_RETURN(const std::string activation, fields.StringOr("hidden_act", "silu"));
  if (activation != "silu") return fields.Bad("hidden_act", "only silu is supported");
  for (const char* key : {"attention_bias", "mlp_bias", "rope_interleaved"}) {
    // Qwen2 has its bias whatever attention_bias says; its reference implementation ignores the
    // key.
    if (family == ModelFamily::kQwen2 && std::string_view(key) == "attention_bias") continue;
    ASSIGN_OR_RETURN(const bool is_set, fields.BoolOr(key, false));
    if (is_set) return fields.Bad(key, "only false is supported");
  }
  if (fields.Find("quantization_config") != nullptr) {
    return fields.Bad("quantization_config", "only unquantized weights are supported");
  }
  if (fields.Find("partial_rotary_factor") != nullptr) {
    ASSIGN_OR_RETURN(const double partial, fields.Number("partial_rotary_factor", 0, 1));
    if (partial != 1.0) return fields.Bad("partial_rotary_factor", "only 1 is supported");
  }
  return absl::OkStatus();
}

// A window that can never cut a prompt of max_positions is not in force.
absl::Status RefuseSlidingWindow(const JsonFields& fields, const ModelConfig& config) {
  const bool is_qwen = ModelFamilyName(config.family).starts_with("qwen");
  ASSIGN_OR_RETURN(const bool uses_window, fields.BoolOr("use_sliding_window", !is_qwen));
  if (const json* types = fields.Find("layer_types"); types != nullptr) {
    if (!types->is_array()) return fields.Bad("layer_types", "a list is valid");
    for (const json& type : *types) {
      if (type != "full_attention") {
        return fields.Bad("layer_types", "only full_attention in every layer is supported");
      }
    }
  }
  if (!uses_window || fields.Find("sliding_window") == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const int64_t window, fields.Integer("sliding_window", 1, INT64_MAX));
  if (window < config.max_positions) {
    return fields.Bad("sliding_window",
                      "a sliding window below max_position_embeddings is not supported; null is");
  }
  return absl::OkStatus();
}

absl::Status ReadHeadDim(const JsonFields& fields, ModelConfig& config) {
  if (fields.Find("head_dim") != nullptr || config.family == ModelFamily::kQwen3) {
    ASSIGN_OR_RETURN(config.head_dim, fields.Integer("head_dim", 2, kHeadDimMax));
  } else {
    if (config.hidden_size % config.num_heads != 0) {
      return fields.Bad("hidden_size",
                        absl::StrCat("without head_dim, a multiple of ", "num_attention_heads (",
                                     config.num_heads, ") is valid"));
    }
    config.head_dim = config.hidden_size / config.num_heads;
  }
  if (config.head_dim % 2 != 0 || config.head_dim > kHeadDimMax) {
    return fields.Bad("head_dim", absl::StrCat("heads of ", config.head_dim,
                                               " cannot be rotated; an even number up to ",
                                               kHeadDimMax, " is valid"));
  }
  return absl::OkStatus();
}

absl::Status ReadShape(const JsonFields& fields, ModelConfig& config) {
  ASSIGN_OR_RETURN(config.num_layers, fields.Integer("num_hidden_layers", 1, kLayersMax));
  ASSIGN_OR_RETURN(config.hidden_size, fields.Integer("hidden_size", 1, kHiddenMax));
  ASSIGN_OR_RETURN(config.intermediate_size,
                   fields.Integer("intermediate_size", 1, kIntermediateMax));
  ASSIGN_OR_RETURN(config.num_heads, fields.Integer("num_attention_heads", 1, kHeadsMax));
  ASSIGN_OR_RETURN(config.num_kv_heads, fields.Integer("num_key_value_heads", 1, kHeadsMax));
  if (config.num_heads % config.num_kv_heads != 0) {
    return fields.Bad("num_key_value_heads", absl::StrCat("a divisor of num_attention_heads (",
                                                          config.num_heads, ") is valid"));
  }
  RETURN_IF_ERROR(config.family == ModelFamily::kDeepseekV2 ? ReadLatentAttention(fields, config)
                                                            : ReadHeadDim(fields, config));
  ASSIGN_OR_RETURN(config.vocab_size, fields.Integer("vocab_size", 1, kVocabMax));
  ASSIGN_OR_RETURN(config.max_positions,
                   fields.Integer("max_position_embeddings", 1, kPositionsMax));
  ASSIGN_OR_RETURN(config.rms_norm_eps, fields.Number("rms_norm_eps", 1e-12, 0.1));
  return absl::OkStatus();
}

// `eos_token_id` is an integer, a list of them, or absent.
absl::StatusOr<std::vector<uint32_t>> ReadEosTokens(const JsonFields& fields, int64_t vocab_size) {
  const json* value = fields.Find("eos_token_id");
  if (value == nullptr) return std::vector<uint32_t>{};
  const json list = value->is_array() ? *value : json::array({*value});
  std::vector<uint32_t> tokens;
  for (const json& token : list) {
    const bool is_valid =
        token.is_number_unsigned() && token.get<uint64_t>() < static_cast<uint64_t>(vocab_size);
    if (!is_valid || list.size() > kEosTokensMax) {
      return fields.Bad("eos_token_id", absl::StrCat("a token id below vocab_size (", vocab_size,
                                                     "), or a list of ", "at most ", kEosTokensMax,
                                                     " of them, is valid"));
    }
    tokens.push_back(token.get<uint32_t>());
  }
  return tokens;
}

std::string Sha256Hex(std::string_view text) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest), sizeof(digest)));
}

}  // namespace

std::string_view ModelFamilyName(ModelFamily family) {
  for (const FamilyNames& names : kFamilies) {
    if (names.family == family) return names.model_type;
  }
  return "unknown";
}

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json_text,
                                             std::string_view file_name) {
  ASSIGN_OR_RETURN(const json object, ParseJsonObject(json_text, file_name));
  const JsonFields fields(object, file_name, "");
  ModelConfig config;
  ASSIGN_OR_RETURN(config.family, ReadFamily(fields));
  RETURN_IF_ERROR(RefuseUnsupported(fields, config.family));
  RETURN_IF_ERROR(ReadShape(fields, config));
  RETURN_IF_ERROR(RefuseSlidingWindow(fields, config));
  RETURN_IF_ERROR(ReadRope(fields, file_name, config));
  RETURN_IF_ERROR(ReadExperts(fields, config));
  ASSIGN_OR_RETURN(config.tie_word_embeddings, fields.BoolOr("tie_word_embeddings", false));
  config.has_qkv_bias = config.family == ModelFamily::kQwen2;
  config.has_qk_norm =
      config.family == ModelFamily::kQwen3 || config.family == ModelFamily::kQwen3Moe;
  if (fields.Find("bos_token_id") != nullptr) {
    ASSIGN_OR_RETURN(const int64_t bos, fields.Integer("bos_token_id", 0, config.vocab_size - 1));
    config.bos_token_id = static_cast<uint32_t>(bos);
  }
  ASSIGN_OR_RETURN(config.eos_token_ids, ReadEosTokens(fields, config.vocab_size));
  config.config_sha256 = Sha256Hex(json_text);
  return config;
}

absl::StatusOr<ModelConfig> ReadModelConfig(const std::filesystem::path& model_dir) {
  const std::filesystem::path path = model_dir / "config.json";
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kConfigBytesMax));
  ASSIGN_OR_RETURN(ModelConfig config, ParseModelConfig(text, path.string()));

  const std::filesystem::path generation_path = model_dir / "generation_config.json";
  absl::StatusOr<std::string> generation = ReadTextFile(generation_path, kConfigBytesMax);
  if (absl::IsNotFound(generation.status())) return config;
  RETURN_IF_ERROR(generation.status());
  ASSIGN_OR_RETURN(const json object, ParseJsonObject(*generation, generation_path.string()));
  const JsonFields fields(object, generation_path.string(), "");
  ASSIGN_OR_RETURN(std::vector<uint32_t> eos, ReadEosTokens(fields, config.vocab_size));
  if (!eos.empty()) config.eos_token_ids = std::move(eos);
  return config;
}

}  // namespace kvstore::engine
