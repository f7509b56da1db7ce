#include <cstring>

#include "kernels/gemm.h"

namespace kvstore::kernels {
namespace {

template <typename Weight>
void PackTyped(const Weight* source, int64_t rows, int64_t k, int64_t first_row, Weight* panels) {
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = first_row + r;
    Weight* to = panels + row / kPanelColumns * kPanelColumns * k + row % kPanelColumns;
    const Weight* from = source + r * k;
    for (int64_t i = 0; i < k; ++i) to[i * kPanelColumns] = from[i];
  }
}

}  // namespace

void PackRows(const void* source, int64_t rows, int64_t k, WeightType type, int64_t first_row,
              void* panels) {
  if (type == WeightType::kBf16) {
    PackTyped(static_cast<const uint16_t*>(source), rows, k, first_row,
              static_cast<uint16_t*>(panels));
  } else {
    PackTyped(static_cast<const float*>(source), rows, k, first_row, static_cast<float*>(panels));
  }
}

void PackPadding(int64_t n, int64_t k, WeightType type, void* panels) {
  const size_t bytes = type == WeightType::kBf16 ? 2 : 4;
  for (int64_t row = n; row < PanelsOf(n) * kPanelColumns; ++row) {
    auto* to = static_cast<unsigned char*>(panels) +
               (row / kPanelColumns * kPanelColumns * k + row % kPanelColumns) *
                   static_cast<int64_t>(bytes);
    for (int64_t i = 0; i < k; ++i) {
      std::memset(to + i * kPanelColumns * static_cast<int64_t>(bytes), 0, bytes);
    }
  }
}

}  // namespace kvstore::kernels
