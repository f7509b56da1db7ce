// ModelConfig is what the built-in engine knows of a dense Llama-family model: the shape and the
// numbers of its arithmetic, read from the `config.json` of a Hugging Face folder. A model that
// this engine would compute wrongly is refused here, by name of the key.
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

enum class ModelFamily { kLlama, kMistral, kQwen2, kQwen3 };

// The name in `model_type` of config.json: "llama", "mistral", "qwen2", "qwen3".
std::string_view ModelFamilyName(ModelFamily family);

// How rotary frequencies are stretched past the positions a model was first trained on.
//
//   base:    inv_freq[i] = theta^(-2i / head_dim), i in [0, head_dim / 2)
//   rotation: the pair (i, i + head_dim / 2) by the angle position * inv_freq[i] ("rotate half")
//
//   kLinear: inv_freq / factor
//   kLlama3: with wavelen = 2 pi / inv_freq, old = original_max_positions
//     wavelen > old / low_freq_factor  ->  inv_freq / factor
//     wavelen < old / high_freq_factor ->  inv_freq
//     between:  s = (old / wavelen - low_freq_factor) / (high_freq_factor - low_freq_factor)
//               (1 - s) * inv_freq / factor + s * inv_freq
struct RopeScaling {
  enum class Kind { kNone, kLinear, kLlama3 };

  Kind kind = Kind::kNone;
  double factor = 1.0;                 // >= 1; kLinear and kLlama3
  double low_freq_factor = 1.0;        // kLlama3
  double high_freq_factor = 4.0;       // kLlama3, > low_freq_factor
  int64_t original_max_positions = 0;  // kLlama3, > 0
};

struct ModelConfig {
  ModelFamily family = ModelFamily::kLlama;
  int64_t num_layers = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;  // of the SwiGLU feed-forward
  int64_t num_heads = 0;          // query heads, a multiple of num_kv_heads
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;  // even; need not be hidden_size / num_heads
  int64_t vocab_size = 0;
  double rms_norm_eps = 0;
  double rope_theta = 0;
  RopeScaling rope_scaling;
  int64_t max_positions = 0;  // positions 0 .. max_positions - 1 are valid
  bool tie_word_embeddings = false;
  bool has_qkv_bias = false;  // Qwen2: q, k and v have a bias, o has none
  bool has_qk_norm = false;   // Qwen3: RMSNorm over head_dim of each q and k head, before RoPE
  std::optional<uint32_t> bos_token_id;
  std::vector<uint32_t> eos_token_ids;  // generation stops at any of them; from
                                        // generation_config.json where that names some
  std::string
      config_sha256;  // hex digest of the bytes of config.json; part of the weights revision

  int64_t query_size() const { return num_heads * head_dim; }
  int64_t kv_size() const {
    return num_kv_heads * head_dim;
  }  // elements of K (or of V) for one token of one layer
};

// Reads `model_dir`/config.json, and the stop tokens of `model_dir`/generation_config.json if that
// exists. Errors: NotFound, no config.json; InvalidArgument, a model this engine does not run or a
// bad value: the message has file, key, what is valid.
absl::StatusOr<ModelConfig> ReadModelConfig(const std::filesystem::path& model_dir);

// The same from text. `file_name` only appears in messages.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json_text,
                                             std::string_view file_name);

}  // namespace kvstore::engine
