// CudaBackend runs dense Llama-family models on one CUDA device of compute capability 9.0: weights
// and activations in bf16, sums in float32.
//
// Bits: the promise of backend.h holds. Row kernels and attention keep it by construction
// (kernels/cuda), matrix products because their algorithms are compared when the back-end is made
// (gemm_plans.h); decode runs the same kernels as prefill, so it writes the same bytes. A product
// may be computed for more rows than are wanted.
//
// Passes of one token replay a CUDA graph, made when a sequence first needs it.
//
// Threads: externally synchronised. Forward() returns when the device is done.
#pragma once

#include <absl/status/statusor.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "engine_adapter/llama/backend.h"
#include "engine_adapter/llama/model_weights.h"
#include "transfer/cuda/address_range.h"
#include "transfer/cuda/cuda_context.h"

namespace kvstore::engine {

struct CudaBackendOptions {
  int device = 0;
  int64_t block_tokens = 256;      // a multiple of 64
  int64_t pass_tokens_max = 8192;  // rows of work space; rounded up to a multiple of 128
  // Tokens that the pool of KV pages holds; 0: all positions of the model, or what fits into 90 % of
  // the memory that is left.
  int64_t pool_tokens = 0;

  static constexpr int64_t kPassTokensMax = 1 << 15;
};

class CudaBackend : public Backend {
 public:
  // What pages can be moved with: the device as the driver sees it, the addresses that attention
  // reads pages at, and the stream that Forward() works on.
  virtual const std::shared_ptr<transfer::CudaContext>& context() const = 0;
  virtual const std::shared_ptr<transfer::AddressRange>& addresses() const = 0;
  virtual cudaStream_t stream() const = 0;
  virtual uint32_t multiprocessors() const = 0;
};

// Reads `weights` while it is created only. Takes some seconds: weights are uploaded and products
// compared. Errors: InvalidArgument, an option out of range or a shape that the kernels do not
// compute; FailedPrecondition, a device of another capability, or no products with equal bits;
// Unavailable, no device, driver or cuBLASLt: the message says what is missing; ResourceExhausted.
absl::StatusOr<std::unique_ptr<CudaBackend>> CreateCudaBackend(const ModelConfig& config,
                                                               const ModelWeights& weights,
                                                               const CudaBackendOptions& options);

}  // namespace kvstore::engine
