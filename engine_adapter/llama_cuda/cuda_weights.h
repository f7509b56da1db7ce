// CudaWeights is a model's weights as the CUDA back-end wants them: bf16 in device memory, q/k/v and
// gate/up fused along their rows.
//
// A tensor published in bf16 is copied as it is; others are rounded to bf16. Threads: immutable
// after Upload(). Memory: two bytes a weight.
#pragma once

#include <absl/status/statusor.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "engine_adapter/llama/model_config.h"
#include "engine_adapter/llama/model_weights.h"
#include "engine_adapter/llama_cuda/device_memory.h"

namespace kvstore::engine {

// All of CudaWeights' memory; null where a model has no such tensor.
struct CudaLayerWeights {
  const __nv_bfloat16* input_norm = nullptr;           // [H]
  const __nv_bfloat16* qkv = nullptr;                  // [Q + 2 KV, H]
  const __nv_bfloat16* qkv_bias = nullptr;             // [Q + 2 KV]
  const __nv_bfloat16* q_norm = nullptr;               // [head_dim]
  const __nv_bfloat16* k_norm = nullptr;               // [head_dim]
  const __nv_bfloat16* o = nullptr;                    // [H, Q]
  const __nv_bfloat16* post_attention_norm = nullptr;  // [H]
  const __nv_bfloat16* gate_up = nullptr;              // [2 I, H]
  const __nv_bfloat16* down = nullptr;                 // [H, I]
};

class CudaWeights {
 public:
  // Errors: ResourceExhausted, the device has no room: the message has what is free and needed.
  // Copies on `stream`, and waits for it.
  static absl::StatusOr<CudaWeights> Upload(const ModelWeights& weights, cudaStream_t stream);

  CudaWeights() = default;  // empty
  const std::vector<CudaLayerWeights>& layers() const { return layers_; }
  const __nv_bfloat16* embedding() const { return embedding_; }    // [vocab, H]
  const __nv_bfloat16* final_norm() const { return final_norm_; }  // [H]
  const __nv_bfloat16* lm_head() const { return lm_head_; }        // [vocab, H]

 private:
  DeviceMemory memory_;
  std::vector<CudaLayerWeights> layers_;
  const __nv_bfloat16* embedding_ = nullptr;
  const __nv_bfloat16* final_norm_ = nullptr;
  const __nv_bfloat16* lm_head_ = nullptr;
};

}  // namespace kvstore::engine
