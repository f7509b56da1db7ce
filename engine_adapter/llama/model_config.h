// ModelConfig is what the built-in engine knows of a model: the shape and the numbers of its
// arithmetic, read from the `config.json` of a Hugging Face folder. A model that this engine would
// compute wrongly is refused here, by name of the key.
//
// A layer is attention and a feed-forward. Attention is grouped-query attention, or latent
// attention where `latent` is set. The feed-forward is one SwiGLU, or a mixture of experts in the
// layers from `experts->first_layer` on.
//
// Threads: immutable after it is read.
// Trust:   the file is untrusted. Every number is bounded, so that products of three of them fit in
// int64_t; nothing is adjusted silently.
#pragma once

#include <absl/status/statusor.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvstore::engine {

enum class ModelFamily { kLlama, kMistral, kQwen2, kQwen3, kQwen3Moe, kDeepseekV2 };

// The name in `model_type` of config.json: "llama", "mistral", "qwen2", "qwen3", "qwen3_moe",
// "deepseek_v2".
std::string_view ModelFamilyName(ModelFamily family);

// How rotary frequencies are stretched past the positions a model was first trained on.
//
//   base:    inv_freq[i] = theta^(-2i / dim), i in [0, dim / 2), dim = rope_dim()
//   rotation: the pair (i, i + dim / 2) by the angle position * inv_freq[i] ("rotate half"; the
//   pairs of deepseek_v2 are neighbours in its files: those who pack its weights reorder the rows)
//
//   kLinear: inv_freq / factor
//   kLlama3: with wavelen = 2 pi / inv_freq, old = original_max_positions
//     wavelen > old / low_freq_factor  ->  inv_freq / factor
//     wavelen < old / high_freq_factor ->  inv_freq
//     between:  s = (old / wavelen - low_freq_factor) / (high_freq_factor - low_freq_factor)
//               (1 - s) * inv_freq / factor + s * inv_freq
//   kYarn: with turns(n) = dim * ln(old / (2 pi n)) / (2 ln theta), the i that turns n times over
//   the old positions, low = floor(turns(beta_fast)), high = ceil(turns(beta_slow)) and
//     s = clamp((i - low) / (high - low), 0, 1):  s * inv_freq / factor + (1 - s) * inv_freq
struct RopeScaling {
  enum class Kind { kNone, kLinear, kLlama3, kYarn };

  Kind kind = Kind::kNone;
  double factor = 1.0;                 // >= 1; all kinds but kNone
  double low_freq_factor = 1.0;        // kLlama3
  double high_freq_factor = 4.0;       // kLlama3, > low_freq_factor
  int64_t original_max_positions = 0;  // kLlama3 and kYarn, > 0
  double beta_fast = 32.0;             // kYarn
  double beta_slow = 1.0;              // kYarn, < beta_fast
  double attention_factor = 1.0;       // kYarn: cosines and sines are multiplied by it
  double score_factor = 1.0;  // kYarn of deepseek_v2: attention scores, from mscale_all_dim
};

// Latent attention (MLA, DeepSeek-V2 without query compression): keys and values of all heads are
// made from one latent vector a token and one rotated key that the heads share. Those two are all
// that is cached.
struct LatentAttention {
  int64_t kv_rank = 0;    // elements of the latent vector
  int64_t nope_dim = 0;   // of a head's key (and query), made from the latent vector
  int64_t rope_dim = 0;   // of the shared key (and of each query), rotated; even
  int64_t value_dim = 0;  // of a head's value

  int64_t cached_size() const { return kv_rank + rope_dim; }
};

// A mixture of experts: each token goes through `per_token` of `num_experts` SwiGLUs, weighted by
// softmax over all, and through the shared ones.
struct ExpertLayers {
  int64_t num_experts = 0;
  int64_t per_token = 0;
  int64_t intermediate_size = 0;         // of one expert
  int64_t shared_intermediate_size = 0;  // of the shared experts together; 0: there are none
  int64_t first_layer = 0;               // layers before it have one SwiGLU of intermediate_size
  bool is_normalized = false;            // the weights of the chosen experts are scaled to sum 1
  double scale = 1.0;                    // and all multiplied by this
};

struct ModelConfig {
  ModelFamily family = ModelFamily::kLlama;
  int64_t num_layers = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;  // of the SwiGLU feed-forward
  int64_t num_heads = 0;          // query heads, a multiple of num_kv_heads
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;  // of queries and keys; even; need not be hidden_size / num_heads
  int64_t vocab_size = 0;
  double rms_norm_eps = 0;
  double rope_theta = 0;
  RopeScaling rope_scaling;
  int64_t max_positions = 0;  // positions 0 .. max_positions - 1 are valid
  bool tie_word_embeddings = false;
  bool has_qkv_bias = false;  // Qwen2: q, k and v have a bias, o has none
  bool has_qk_norm = false;   // Qwen3: RMSNorm over head_dim of each q and k head, before RoPE
  std::optional<LatentAttention> latent;  // DeepSeek-V2; head_dim = nope_dim + rope_dim then
  std::optional<ExpertLayers> experts;    // Qwen3-MoE, DeepSeek-V2
  std::optional<uint32_t> bos_token_id;
  std::vector<uint32_t> eos_token_ids;  // generation stops at any of them; from
                                        // generation_config.json where that names some
  std::string
      config_sha256;  // hex digest of the bytes of config.json; part of the weights revision

  int64_t query_size() const { return num_heads * head_dim; }
  // Elements of K (or of V) for one token of one layer; grouped-query attention only.
  int64_t kv_size() const { return num_kv_heads * head_dim; }
  // What attention gives to its output projection.
  int64_t attended_size() const {
    return num_heads * (latent.has_value() ? latent->value_dim : head_dim);
  }
  int64_t rope_dim() const { return latent.has_value() ? latent->rope_dim : head_dim; }
  bool HasExperts(int64_t layer) const {
    return experts.has_value() && layer >= experts->first_layer;
  }
};

// Reads `model_dir`/config.json, and the stop tokens of `model_dir`/generation_config.json if that
// exists. Errors: NotFound, no config.json; InvalidArgument, a model this engine does not run or a
// bad value: the message has file, key, what is valid.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::filesystem::path& model_dir);

// The same from text. `file_name` only appears in messages.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json_text,
                                             std::string_view file_name);

}  // namespace kvstore::engine
