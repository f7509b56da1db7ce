// CpuWeights is a model's weights as the CPU kernels want them: every matrix packed into panels
// once, q/k/v and gate/up fused along their rows, norms and biases widened to float32.
//
// A matrix published in bf16 is kept in bf16, which is exact; others are kept in float32.
// Threads: immutable after Pack(). Memory: about as much as the weight files, beside their mapping.
#pragma once

#include <absl/status/statusor.h>

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "engine_adapter/llama/model_config.h"
#include "engine_adapter/llama/model_weights.h"
#include "engine_adapter/llama_cpu/thread_pool.h"
#include "engine_adapter/paging/aligned_buffer.h"
#include "kernels/gemm.h"

namespace kvstore::engine {

struct PackedMatrix {
  AlignedBuffer panels;  // [PanelsOf(n), k, 16] of type
  kernels::WeightType type = kernels::WeightType::kBf16;
  int64_t n = 0;
  int64_t k = 0;
  std::vector<float> bias;  // [n] or empty
};

struct CpuLayerWeights {
  PackedMatrix qkv;                        // [Q + 2 KV, H]
  PackedMatrix o;                          // [H, Q]
  PackedMatrix gate_up;                    // [2 I, H]
  PackedMatrix down;                       // [H, I]
  std::vector<float> input_norm;           // [H]
  std::vector<float> post_attention_norm;  // [H]
  std::vector<float> q_norm;               // [head_dim] or empty
  std::vector<float> k_norm;               // [head_dim] or empty
};

struct CpuWeights {
  std::vector<CpuLayerWeights> layers;
  std::vector<float> final_norm;  // [H]
  PackedMatrix lm_head;           // [vocab, H]

  // Errors: ResourceExhausted, no memory.
  static absl::StatusOr<CpuWeights> Pack(const ModelWeights& weights, ThreadPool& pool);
};

}  // namespace kvstore::engine
