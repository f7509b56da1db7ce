// CpuBackend runs all models of ModelConfig on the CPU: float32 arithmetic, weights in bf16 where
// they were published so.
//
// Numerics: see kernels/gemm.h and kernels/attention.h. Keys and values are written to their pages
// first and read back from there, so computed and loaded ones are the same bits. The last layer
// computes its output only for the row whose logits are wanted, since nothing else reads it.
//
// Threads: externally synchronised; uses `num_threads` threads inside Forward().
#pragma once

#include <absl/status/statusor.h>

#include <cstdint>
#include <memory>

#include "engine_adapter/llama/backend.h"
#include "engine_adapter/llama/model_weights.h"
#include "kernels/cpu_kernels.h"

namespace kvstore::engine {

struct CpuBackendOptions {
  int64_t block_tokens = 64;
  KvDtype kv_dtype = KvDtype::kBf16;
  int num_threads = 0;                           // 0: as many as this process may run on
  int64_t pass_tokens_max = 512;                 // rows of work space
  const kernels::CpuKernels* kernels = nullptr;  // null: the best this CPU can run

  static constexpr int kThreadsMax = 256;
  static constexpr int64_t kPassTokensMax = 1 << 16;
};

// Multiply-adds counted as two operations: every matrix product and the causal part of attention
// that Forward() computes for tokens [first_position, first_position + num_tokens) when only the
// last one's logits are wanted. See cpu_flops.cc.
double ForwardFlops(const ModelConfig& config, int64_t first_position, int64_t num_tokens);

// `weights` must outlive the back-end (it reads the embedding in place).
// Errors: InvalidArgument, an option out of range or a shape the kernels do not run;
// ResourceExhausted.
absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const ModelConfig& config,
                                                          const ModelWeights& weights,
                                                          const CpuBackendOptions& options);

}  // namespace kvstore::engine
