#include "engine_adapter/llama_cpu/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

constexpr int64_t kRowsPerPiece = 512;

}  // namespace

absl::StatusOr<MatrixPacker> MatrixPacker::Create(int64_t n, int64_t k, bool is_bf16,
                                                  ThreadPool& pool) {
  PackedMatrix matrix;
  matrix.n = n;
  matrix.k = k;
  matrix.type = is_bf16 ? kernels::WeightType::kBf16 : kernels::WeightType::kF32;
  ASSIGN_OR_RETURN(matrix.panels,
                   AlignedBuffer::Allocate(kernels::PackedWeightBytes(n, k, matrix.type)));
  return MatrixPacker(std::move(matrix), pool);
}

// fill_row(index, row) writes k elements of the packed type to `row`. Threads write different
// elements; a cache line is shared only where a part starts inside a panel.
template <typename FillRow>
void MatrixPacker::AppendEach(int64_t num_rows, FillRow fill_row) {
  const size_t row_bytes =
      static_cast<size_t>(matrix_.k) * (matrix_.type == kernels::WeightType::kBf16 ? 2 : 4);
  const int64_t first = next_row_;
  pool_->Run((num_rows + kRowsPerPiece - 1) / kRowsPerPiece, [&](int64_t piece, int) {
    std::vector<std::byte> row(row_bytes);
    const int64_t begin = piece * kRowsPerPiece;
    for (int64_t i = begin; i < std::min(begin + kRowsPerPiece, num_rows); ++i) {
      fill_row(i, row.data());
      kernels::PackRows(row.data(), 1, matrix_.k, matrix_.type, first + i, matrix_.panels.data());
    }
  });
  next_row_ += num_rows;
}

void MatrixPacker::Append(const TensorView& tensor) {
  std::vector<int64_t> rows(static_cast<size_t>(tensor.shape[0]));
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int64_t>(i);
  AppendRows(tensor, rows);
}

void MatrixPacker::AppendRows(const TensorView& tensor, std::span<const int64_t> rows) {
  const int64_t k = matrix_.k;
  AppendEach(static_cast<int64_t>(rows.size()), [&](int64_t index, std::byte* to) {
    const int64_t from = rows[static_cast<size_t>(index)] * k;
    if (matrix_.type == kernels::WeightType::kBf16) {
      std::memcpy(to, tensor.address + from * 2, static_cast<size_t>(k) * 2);
    } else {
      CopyAsFloat(tensor, from, {reinterpret_cast<float*>(to), static_cast<size_t>(k)});
    }
  });
}

void MatrixPacker::AppendTransposed(const TensorView& tensor, int64_t first_row) {
  const int64_t k = matrix_.k, columns = tensor.shape[1];
  AppendEach(columns, [&](int64_t column, std::byte* to) {
    for (int64_t i = 0; i < k; ++i) {
      const int64_t from = (first_row + i) * columns + column;
      if (matrix_.type == kernels::WeightType::kBf16) {
        std::memcpy(to + i * 2, tensor.address + from * 2, 2);
      } else {
        CopyAsFloat(tensor, from, {reinterpret_cast<float*>(to) + i, 1});
      }
    }
  });
}

PackedMatrix MatrixPacker::Finish() && {
  kernels::PackPadding(matrix_.n, matrix_.k, matrix_.type, matrix_.panels.data());
  return std::move(matrix_);
}

absl::StatusOr<PackedMatrix> PackFused(std::initializer_list<const TensorView*> tensors,
                                       ThreadPool& pool) {
  int64_t n = 0;
  bool is_bf16 = true;
  for (const TensorView* tensor : tensors) {
    n += tensor->shape[0];
    is_bf16 = is_bf16 && tensor->dtype == DType::kBF16;
  }
  ASSIGN_OR_RETURN(MatrixPacker packer,
                   MatrixPacker::Create(n, (*tensors.begin())->shape[1], is_bf16, pool));
  for (const TensorView* tensor : tensors) packer.Append(*tensor);
  return std::move(packer).Finish();
}

std::vector<float> Widen(const TensorView& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  CopyAsFloat(tensor, 0, values);
  return values;
}

std::vector<float> WidenOptional(const std::optional<TensorView>& tensor) {
  return tensor.has_value() ? Widen(*tensor) : std::vector<float>();
}

}  // namespace kvstore::engine
