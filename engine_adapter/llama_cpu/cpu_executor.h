// CpuExecutor runs kernels over rows on a thread pool: every call returns when its rows are done.
// How the work is cut into pieces changes no bit of it (kernels/gemm.h).
//
// Threads: externally synchronised. Does not allocate after Plan().
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "engine_adapter/llama_cpu/packed_matrix.h"
#include "engine_adapter/llama_cpu/thread_pool.h"
#include "engine_adapter/llama_cpu/work_space.h"
#include "kernels/cpu_kernels.h"

namespace kvstore::engine {

// One product of several that are computed at once: c = a * matrix^T for these rows.
struct Product {
  Activation a;  // [rows, k]
  const PackedMatrix* matrix = nullptr;
  Activation c;  // [rows, n]
  RowRange rows;

  // Set by Multiply(): how it is cut.
  int64_t first_piece = 0;
  int64_t piece_rows = 0;
  int64_t piece_panels = 0;
  int64_t panel_pieces = 0;
};

class CpuExecutor {
 public:
  // The most rows whose products need one read of the weights: every tile shape of every
  // instruction set fits into it.
  static constexpr int64_t kNarrowRows = 12;

  CpuExecutor(const kernels::CpuKernels& kernels, int num_threads)
      : kernels_(kernels), pool_(num_threads) {}

  const kernels::CpuKernels& kernels() const { return kernels_; }
  ThreadPool& pool() { return pool_; }
  int num_threads() const { return pool_.num_threads(); }

  // Scratch for products and for attention with heads of `head_dim`, for every thread.
  void Plan(WorkSpace& space, int64_t head_dim);
  float* scratch(int thread) const { return scratch_ + thread * scratch_floats_; }

  // Calls call(begin, end) for parts of `rows`.
  template <typename Call>
  void ForRows(RowRange rows, Call call) {
    pool_.Run(CeilDiv(rows.size(), kRowsPerPiece), [&](int64_t piece, int) {
      const int64_t begin = rows.begin + piece * kRowsPerPiece;
      call(begin, std::min(begin + kRowsPerPiece, rows.end));
    });
  }

  void Multiply(RowRange rows, const Activation& a, const PackedMatrix& matrix,
                const Activation& c);
  // All of them in one launch. Requires: no two write the same element.
  void Multiply(std::span<Product> products);

 private:
  static constexpr int64_t kRowsPerPiece = 16;

  int64_t CutIntoPieces(std::span<Product> products) const;

  const kernels::CpuKernels& kernels_;
  ThreadPool pool_;
  float* scratch_ = nullptr;  // [threads, scratch_floats_]
  int64_t scratch_floats_ = 0;
};

}  // namespace kvstore::engine
