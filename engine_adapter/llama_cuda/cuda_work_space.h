// CudaWorkSpace is what a pass computes in, and the rotary table that it reads.
//
// Threads: externally synchronised. Freed on destruction, which waits for the device.
#pragma once

#include <absl/status/statusor.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine_adapter/llama/model_config.h"
#include "engine_adapter/llama_cuda/device_memory.h"

namespace kvstore::engine {

struct CudaWorkSpace {
  static constexpr int64_t kLogitRows = 16;  // of the last product; one of them is wanted

  // Room for passes of `rows` rows. Fills the table, and waits for that. Errors: ResourceExhausted.
  static absl::StatusOr<CudaWorkSpace> Create(const ModelConfig& config, int64_t rows,
                                              cudaStream_t stream);

  // All in memory.
  __nv_bfloat16* x = nullptr;          // [rows, H] residual stream
  __nv_bfloat16* normed = nullptr;     // [rows, H]
  __nv_bfloat16* qkv = nullptr;        // [rows, Q + 2 KV]
  __nv_bfloat16* attended = nullptr;   // [rows, Q]
  __nv_bfloat16* gate_up = nullptr;    // [rows, 2 I]
  __nv_bfloat16* activated = nullptr;  // [rows, I]
  float* logits = nullptr;             // [kLogitRows, vocab]
  float2* rope = nullptr;              // [max_positions, head_dim / 2], in rope_memory
  DeviceMemory memory, rope_memory;
  DeviceMemory gemm;  // cuBLASLt's own

 private:
  absl::Status AllocateRows(const ModelConfig& config, int64_t rows, cudaStream_t stream);
  absl::Status MakeRopeTable(const ModelConfig& config, cudaStream_t stream);
};

}  // namespace kvstore::engine
