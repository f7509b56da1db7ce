// PackedMatrix is a weight matrix as the CPU kernels want it: cut into panels once, several tensors
// fused along their rows, rows reordered where the kernels want another order than the files have.
//
// A matrix published in bf16 is kept in bf16, which is exact; others are kept in float32.
// Threads: immutable once finished. Memory: about as much as the weight files, beside their mapping.
#pragma once

#include <absl/status/statusor.h>

#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

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

// Packs a matrix [n, k] row by row, from rows of tensors.
class MatrixPacker {
 public:
  // bf16 if all tensors that it is made of are. Errors: ResourceExhausted, no memory.
  static absl::StatusOr<MatrixPacker> Create(int64_t n, int64_t k, bool is_bf16, ThreadPool& pool);

  // Appends all rows of `tensor`, or those named, in their order. Requires: rows of k elements.
  void Append(const TensorView& tensor);
  void AppendRows(const TensorView& tensor, std::span<const int64_t> rows);
  // Appends the columns of rows [first_row, first_row + k) of `tensor` as rows of k elements.
  void AppendTransposed(const TensorView& tensor, int64_t first_row);

  // Requires: n rows were appended.
  PackedMatrix Finish() &&;

 private:
  MatrixPacker(PackedMatrix matrix, ThreadPool& pool) : matrix_(std::move(matrix)), pool_(&pool) {}

  template <typename FillRow>
  void AppendEach(int64_t num_rows, FillRow fill_row);

  PackedMatrix matrix_;
  ThreadPool* pool_;
  int64_t next_row_ = 0;
};

// Matrices of equal width one behind the other. Errors: ResourceExhausted.
absl::StatusOr<PackedMatrix> PackFused(std::initializer_list<const TensorView*> tensors,
                                       ThreadPool& pool);

std::vector<float> Widen(const TensorView& tensor);
std::vector<float> WidenOptional(const std::optional<TensorView>& tensor);

}  // namespace kvstore::engine
