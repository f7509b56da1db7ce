// GemmPlans multiplies rows of activations with one shape of weight matrix through cuBLASLt, by
// algorithms that give a row the same bits whatever the number of rows.
//
// cuBLASLt promises no such thing. So every candidate without split-K is run at every row count in
// use when a plan is made, and a class of candidates is kept that agree bit by bit on the first and
// the last rows; of those the fastest at each power of two. The class's id is a hash of the
// bits: it belongs into the numerics class of the cache namespace.
//
// Threads: externally synchronised. The library and the handle outlive it.
#pragma once

#include <absl/status/statusor.h>
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "engine_adapter/llama_cuda/loaded_cublas_lt.h"

namespace kvstore::engine {

// out[m, n] = sum over k of x[m, k] w[n, k], plus bias[n], or plus what `out` held; float32 sums.
struct GemmShape {
  enum class Output : uint8_t { kBf16, kBf16AddedTo, kFloat };

  int64_t n = 0;  // a multiple of 8, as is k
  int64_t k = 0;
  bool has_bias = false;
  Output output = Output::kBf16;
};

struct DestroyMatrixLayout {
  decltype(&cublasLtMatrixLayoutDestroy) destroy = nullptr;
  void operator()(cublasLtMatrixLayout_t layout) const { destroy(layout); }
};

// Rows of bf16 and device memory throughout. Up to kRowMultiple rows behind the ones in use are read
// and written, too: they may hold anything.
struct GemmOperands {
  const __nv_bfloat16* x = nullptr;     // [rows, k]
  const __nv_bfloat16* w = nullptr;     // [n, k]
  const __nv_bfloat16* bias = nullptr;  // [n]
  void* out = nullptr;                  // [rows, n]
};

class GemmPlans {
 public:
  // Products have 16, 32, 64 rows, or a multiple of this: the next number that is not slower.
  static constexpr int64_t kRowMultiple = 128;
  // What all plans of a back-end share.
  struct Library {
    const LoadedCublasLt* lt = nullptr;
    cublasLtHandle_t handle = nullptr;
    void* workspace = nullptr;
    size_t workspace_bytes = 0;
    cudaStream_t stream = nullptr;
  };

  // Runs candidates on random rows in `scratch` (room for rows_max rows each), with the weights of
  // all `layers`, so that weights come from memory as they do in use. Blocks. `rows_max` is 16, or a
  // multiple of kRowMultiple.
  // Errors: FailedPrecondition, no class of equal bits covers every row count; Internal, of cuBLASLt.
  static absl::StatusOr<GemmPlans> Create(const Library& library, const GemmShape& shape,
                                          int64_t rows_max, const GemmOperands& scratch,
                                          const std::vector<const __nv_bfloat16*>& layers);

  GemmPlans() = default;  // empty

  // Enqueues the product of `rows` rows. Requires: 0 < rows <= rows_max.
  absl::Status Run(int64_t rows, const GemmOperands& operands, cudaStream_t stream) const;

  uint64_t class_id() const { return class_id_; }

 private:
  using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, DestroyMatrixLayout>;
  struct Plan {
    int64_t rows = 0;
    Layout x;    // [k x rows] in cuBLAS's columns first
    Layout out;  // [n x rows]
    cublasLtMatmulAlgo_t algorithm = {};
  };
  class Selection;

  absl::StatusOr<Layout> MakeLayout(cudaDataType_t type, int64_t rows, int64_t columns) const;
  absl::Status Multiply(const Plan& plan, const cublasLtMatmulAlgo_t& algorithm,
                        const GemmOperands& operands, cudaStream_t stream) const;

  Library library_;
  GemmShape shape_;
  Layout w_;                 // [k x n], used transposed
  std::vector<Plan> plans_;  // by rows, ascending
  uint64_t class_id_ = 0;
};

}  // namespace kvstore::engine
