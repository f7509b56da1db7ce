#include "engine_adapter/llama_cpu/cpu_weights.h"

#include <absl/status/status.h>

#include <algorithm>
#include <utility>

#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

constexpr int64_t kRowsPerPiece = 512;

std::vector<float> Widen(const TensorView& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  CopyAsFloat(tensor, 0, values);
  return values;
}

std::vector<float> WidenOptional(const std::optional<TensorView>& tensor) {
  return tensor.has_value() ? Widen(*tensor) : std::vector<float>();
}

void PackTensor(const TensorView& tensor, int64_t first_row, PackedMatrix& matrix,
                ThreadPool& pool) {
  const int64_t rows = tensor.shape[0], k = matrix.k;
  // Threads write different elements; a cache line is shared only where a matrix starts inside a
  // panel.
  pool.Run((rows + kRowsPerPiece - 1) / kRowsPerPiece, [&](int64_t piece, int) {
    const int64_t begin = piece * kRowsPerPiece;
    const int64_t count = std::min(kRowsPerPiece, rows - begin);
    if (matrix.type == kernels::WeightType::kBf16) {
      kernels::PackRows(tensor.address + begin * k * 2, count, k, matrix.type, first_row + begin,
                        matrix.panels.data());
      return;
    }
    std::vector<float> row(static_cast<size_t>(k));
    for (int64_t r = begin; r < begin + count; ++r) {
      CopyAsFloat(tensor, r * k, row);
      kernels::PackRows(row.data(), 1, k, matrix.type, first_row + r, matrix.panels.data());
    }
  });
}

// Packs matrices of equal width one behind the other.
absl::StatusOr<PackedMatrix> PackFused(std::initializer_list<const TensorView*> tensors,
                                       ThreadPool& pool) {
  PackedMatrix matrix;
  matrix.k = (*tensors.begin())->shape[1];
  const bool is_bf16 = std::all_of(tensors.begin(), tensors.end(),
                                   [](const auto* t) { return t->dtype == DType::kBF16; });
  matrix.type = is_bf16 ? kernels::WeightType::kBf16 : kernels::WeightType::kF32;
  for (const TensorView* tensor : tensors) matrix.n += tensor->shape[0];
  ASSIGN_OR_RETURN(matrix.panels, AlignedBuffer::Allocate(
                                      kernels::PackedWeightBytes(matrix.n, matrix.k, matrix.type)));
  int64_t first_row = 0;
  for (const TensorView* tensor : tensors) {
    PackTensor(*tensor, first_row, matrix, pool);
    first_row += tensor->shape[0];
  }
  kernels::PackPadding(matrix.n, matrix.k, matrix.type, matrix.panels.data());
  return matrix;
}

absl::StatusOr<CpuLayerWeights> PackLayer(const LayerWeights& from, ThreadPool& pool) {
  CpuLayerWeights layer;
  ASSIGN_OR_RETURN(layer.qkv, PackFused({&from.q_proj, &from.k_proj, &from.v_proj}, pool));
  ASSIGN_OR_RETURN(layer.o, PackFused({&from.o_proj}, pool));
  ASSIGN_OR_RETURN(layer.gate_up, PackFused({&from.gate_proj, &from.up_proj}, pool));
  ASSIGN_OR_RETURN(layer.down, PackFused({&from.down_proj}, pool));
  for (const auto* bias : {&from.q_bias, &from.k_bias, &from.v_bias}) {
    const std::vector<float> values = WidenOptional(*bias);
    layer.qkv.bias.insert(layer.qkv.bias.end(), values.begin(), values.end());
  }
  layer.input_norm = Widen(from.input_norm);
  layer.post_attention_norm = Widen(from.post_attention_norm);
  layer.q_norm = WidenOptional(from.q_norm);
  layer.k_norm = WidenOptional(from.k_norm);
  return layer;
}

}  // namespace

absl::StatusOr<CpuWeights> CpuWeights::Pack(const ModelWeights& weights, ThreadPool& pool) {
  CpuWeights packed;
  for (const LayerWeights& from : weights.layers()) {
    ASSIGN_OR_RETURN(CpuLayerWeights layer, PackLayer(from, pool));
    packed.layers.push_back(std::move(layer));
  }
  packed.final_norm = Widen(weights.final_norm());
  ASSIGN_OR_RETURN(packed.lm_head, PackFused({&weights.lm_head()}, pool));
  return packed;
}

}  // namespace kvstore::engine
