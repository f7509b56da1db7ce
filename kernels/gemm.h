// Matrix product on the CPU with weights packed once: C[m, n] = bias[n] + sum over k of A[m, k] *
// W[n, k].
//
// Bits: every element of C is one chain of fused multiply-adds in float32, k ascending, that starts
// from its bias (or from zero). Vector width, tile shape, blocking and threads cannot change it, so
// a row of C depends on its own row of A alone: prefill in chunks of any size and decode of one row
// agree bit for bit.
//
// Threads: calls on disjoint blocks of C may run at the same time, each with its own scratch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvstore::kernels {

// Columns of C in a panel: sixteen rows of W, stored k by k.
inline constexpr int64_t kPanelColumns = 16;

// How packed weights are kept. kBf16 halves memory traffic and is exact for models published in
// bf16.
enum class WeightType : uint8_t { kBf16, kF32 };

constexpr int64_t PanelsOf(int64_t n) { return (n + kPanelColumns - 1) / kPanelColumns; }

constexpr size_t PackedWeightBytes(int64_t n, int64_t k, WeightType type) {
  return static_cast<size_t>(PanelsOf(n) * kPanelColumns * k) * (type == WeightType::kBf16 ? 2 : 4);
}

// Packs rows [row_begin, row_end) of a matrix W[n, k], row-major in `source`, into `panels`
// [PanelsOf(n), k, 16]. Call once per matrix fused along n (q, k, v), then pad with PackPadding.
// The source has the packed type. `first_row` is where source row 0 lands.
void PackRows(const void* source, int64_t rows, int64_t k, WeightType type, int64_t first_row,
              void* panels);
// Zeroes rows [n, PanelsOf(n) * 16).
void PackPadding(int64_t n, int64_t k, WeightType type, void* panels);

struct GemmArgs {
  const float* a = nullptr;  // [m, k], rows a_stride floats apart
  int64_t a_stride = 0;
  const void* panels = nullptr;  // [PanelsOf(n), k, 16] of weight_type
  WeightType weight_type = WeightType::kBf16;
  const float* bias = nullptr;  // [n] or null
  float* c = nullptr;           // [m, n], rows c_stride floats apart
  int64_t c_stride = 0;
  int64_t n = 0;
  int64_t k = 0;
};

// A rectangle of C: rows and panels, half open.
struct GemmBlock {
  int64_t row_begin = 0;
  int64_t row_end = 0;
  int64_t panel_begin = 0;
  int64_t panel_end = 0;
};

// Scratch of one GemmBlock call, in floats: one block of weights widened to float32.
inline constexpr int64_t kGemmDepth = 256;
inline constexpr int64_t kGemmScratchFloats = kGemmDepth * kPanelColumns * 4;

}  // namespace kvstore::kernels
