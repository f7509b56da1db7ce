// ModelWeights holds the mapped weight files of one model and names every tensor the forward pass
// needs.
//
// Once Open() succeeds nothing is missing and nothing is left over: each tensor is present, with
// the shape that ModelConfig demands. Weights follow the Hugging Face convention: a projection is
// [out_features, in_features], row-major, so y = W x.
//
// Threads: immutable after Open().
// Ownership: the views live as long as the ModelWeights (moving it keeps them valid).
#pragma once

#include <absl/status/statusor.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "engine_adapter/llama/model_config.h"
#include "engine_adapter/llama/safetensors.h"

namespace kvstore::engine {

// Latent attention: what stands in the place of k_proj and v_proj. R = kv_rank.
struct LatentWeights {
  TensorView kv_down;  // [R + rope_dim, H]: the latent vector, then the shared key
  TensorView kv_norm;  // [R], RMSNorm of the latent vector
  TensorView kv_up;    // [num_heads * (nope_dim + value_dim), R], head by head: key, then value
};

struct SwigluWeights {
  TensorView gate_proj;  // [I, H]
  TensorView up_proj;    // [I, H]
  TensorView down_proj;  // [H, I]
};

// A mixture of experts: what stands in the place of one SwiGLU.
struct ExpertWeights {
  TensorView router;                    // [num_experts, H]
  std::vector<SwigluWeights> experts;   // of intermediate_size of the experts
  std::optional<SwigluWeights> shared;  // present exactly if shared_intermediate_size > 0
};

// One decoder layer; H = hidden_size, Q = num_heads * head_dim, KV = num_kv_heads * head_dim, I =
// intermediate_size, A = attended_size. Views that the layer has no tensor for are empty.
struct LayerWeights {
  TensorView input_norm;  // [H], RMSNorm before attention
  TensorView q_proj;      // [Q, H], rows head by head, in "rotate half" order; with
                          // latent attention, of each head the part that is not rotated
                          // first, then the rotated one with its pairs side by side
  TensorView k_proj;      // [KV, H], not with latent attention
  TensorView v_proj;      // [KV, H], not with latent attention
  std::optional<LatentWeights> latent;
  std::optional<TensorView> q_bias;  // [Q]   present exactly if has_qkv_bias
  std::optional<TensorView> k_bias;  // [KV]
  std::optional<TensorView> v_bias;  // [KV]
  std::optional<TensorView> q_norm;  // [head_dim], present exactly if has_qk_norm
  std::optional<TensorView> k_norm;  // [head_dim]
  TensorView o_proj;                 // [H, A]
  TensorView post_attention_norm;    // [H], RMSNorm before the feed-forward
  TensorView gate_proj;              // [I, H], these three not where there are experts
  TensorView up_proj;                // [I, H]
  TensorView down_proj;              // [H, I]
  std::optional<ExpertWeights> experts;
};

class ModelWeights {
 public:
  // Maps model.safetensors, or the shards that model.safetensors.index.json lists, in `model_dir`.
  // Errors: NotFound, no weight file; InvalidArgument, a tensor that is missing or has another
  // shape than `config` says (named), a bad file.
  static absl::StatusOr<ModelWeights> Open(const std::filesystem::path& model_dir,
                                           const ModelConfig& config);

  const TensorView& embedding() const { return embedding_; }    // [vocab_size, H]
  const TensorView& final_norm() const { return final_norm_; }  // [H]
  const TensorView& lm_head() const {
    return lm_head_;
  }  // [vocab_size, H]; the same view as embedding() if they are tied
  const std::vector<LayerWeights>& layers() const { return layers_; }

  // weights_revision.h, of the files as mapped. Reads all weights once; never cached, since a digest
  // of changed files must change.
  absl::StatusOr<std::string> ComputeRevision() const;

  size_t total_bytes() const;  // of the mapped files

 private:
  ModelWeights() = default;

  absl::Status MapFiles(const std::filesystem::path& model_dir);
  absl::Status BindTensors(const ModelConfig& config);

  std::string config_sha256_;
  std::vector<SafetensorsFile> files_;  // ordered by file name
  TensorView embedding_;
  TensorView final_norm_;
  TensorView lm_head_;
  std::vector<LayerWeights> layers_;
};

}  // namespace kvstore::engine
