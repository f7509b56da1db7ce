// GEMM micro-kernel and blocking, on the Vec16 of the including variant. Contract: kernels/gemm.h.
#pragma once

#include "kernels/gemm.h"

namespace kvstore::kernels {
namespace {

inline Vec16 LoadWeights(const float* p) { return Load(p); }
inline Vec16 LoadWeights(const uint16_t* p) { return LoadBf16(p); }

// What the accumulators of a tile start from.
enum class Start : uint8_t {
  kZero,
  kBias,    // start[column]
  kC,       // the partial sums already in C
  kScaledC  // C * start[row]
};

// One tile: kRows x (16 * kPanels) elements, `depth` steps of k.
template <typename Weight>
struct Tile {
  const float* a;  // [rows, depth], rows a_stride apart
  int64_t a_stride;
  const Weight* b;  // [panels][depth][16], panels b_stride apart
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  int64_t columns;  // valid columns of C, at most 16 * panels
  int64_t depth;
  Start start;
  const float* start_values;
};

template <int kRows, int kPanels, typename Get>
inline void FillAccumulators(Vec16 (&acc)[kRows][kPanels], Get get) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) acc[r][p] = get(r, p);
  }
}

template <int kRows, int kPanels, typename Weight>
inline void LoadAccumulators(const Tile<Weight>& t, Vec16 (&acc)[kRows][kPanels]) {
  const auto c = [&t](int r, int p) {
    const float* at = t.c + r * t.c_stride + 16 * p;
    return t.columns >= 16 * (p + 1) ? Load(at) : LoadN(at, t.columns - 16 * p);
  };
  switch (t.start) {
    case Start::kBias:
      return FillAccumulators(
          acc, [&t](int, int p) { return LoadN(t.start_values + 16 * p, t.columns - 16 * p); });
    case Start::kC:
      return FillAccumulators(acc, c);
    case Start::kScaledC:
      return FillAccumulators(
          acc, [&t, &c](int r, int p) { return Mul(c(r, p), Set(t.start_values[r])); });
    case Start::kZero:
      break;
  }
  FillAccumulators(acc, [](int, int) { return Zero(); });
}

template <int kRows, int kPanels, typename Weight>
inline void ComputeTile(const Tile<Weight>& t) {
  Vec16 acc[kRows][kPanels];
  LoadAccumulators(t, acc);
  const float* a = t.a;
  const Weight* b = t.b;
  for (int64_t k = 0; k < t.depth; ++k) {
    Vec16 w[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) w[p] = LoadWeights(b + p * t.b_stride + 16 * k);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec16 x = Set(a[r * t.a_stride + k]);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) acc[r][p] = Fma(x, w[p], acc[r][p]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      StoreN(t.c + r * t.c_stride + 16 * p, acc[r][p], t.columns - 16 * p);
    }
  }
}

// Runs `rows` (at most kTileRows) rows of a tile: the same chain for each element, whatever the
// shape.
template <int kPanels, int kRows = kTileRows, typename Weight>
inline void ComputeRows(const Tile<Weight>& t, int64_t rows) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return ComputeTile<kRows, kPanels>(t);
    return ComputeRows<kPanels, kRows - 1>(t, rows);
  }
}

// Few rows: the weights are read once, so they are widened on the way, several panels at a time to
// keep enough independent chains in flight.
template <int kPanels, typename Weight>
inline void GemmNarrow(const GemmArgs& g, const GemmBlock& block, int64_t panel) {
  const int64_t rows = block.row_end - block.row_begin;
  const int64_t column = panel * kPanelColumns;
  Tile<Weight> t;
  t.a = g.a + block.row_begin * g.a_stride;
  t.a_stride = g.a_stride;
  t.b = static_cast<const Weight*>(g.panels) + column * g.k;
  t.b_stride = kPanelColumns * g.k;
  t.c = g.c + block.row_begin * g.c_stride + column;
  t.c_stride = g.c_stride;
  t.columns = g.n - column;
  t.depth = g.k;
  t.start = g.bias != nullptr ? Start::kBias : Start::kZero;
  t.start_values = g.bias != nullptr ? g.bias + column : nullptr;
  if constexpr (kPanels == 4) {
    ComputeTile<1, 4>(t);
  } else {
    ComputeRows<kPanels>(t, rows);
  }
}

// Many rows: a block of `depth` x panels of weights is widened into scratch and used by every tile
// of rows.
template <int kPanels, typename Weight>
inline void GemmWide(const GemmArgs& g, const GemmBlock& block, int64_t panel, int64_t k_begin,
                     int64_t depth, float* scratch) {
  const int64_t column = panel * kPanelColumns;
  const Weight* weights = static_cast<const Weight*>(g.panels) + column * g.k;
  Tile<float> t;
  if constexpr (sizeof(Weight) == sizeof(float)) {
    t.b = reinterpret_cast<const float*>(weights) + k_begin * 16;
    t.b_stride = g.k * 16;
  } else {
    for (int p = 0; p < kPanels; ++p) {
      const Weight* from = weights + (p * g.k + k_begin) * 16;
      for (int64_t k = 0; k < depth; ++k) {
        Store(scratch + (p * depth + k) * 16, LoadWeights(from + 16 * k));
      }
    }
    t.b = scratch;
    t.b_stride = depth * 16;
  }
  t.a_stride = g.a_stride;
  t.c_stride = g.c_stride;
  t.columns = g.n - column;
  t.depth = depth;
  t.start = k_begin > 0 ? Start::kC : (g.bias != nullptr ? Start::kBias : Start::kZero);
  t.start_values = g.bias != nullptr ? g.bias + column : nullptr;
  for (int64_t row = block.row_begin; row < block.row_end; row += kTileRows) {
    t.a = g.a + row * g.a_stride + k_begin;
    t.c = g.c + row * g.c_stride + column;
    const int64_t rows = block.row_end - row;
    ComputeRows<kPanels>(t, rows < kTileRows ? rows : kTileRows);
  }
}

template <typename Weight>
inline void GemmTyped(const GemmArgs& g, const GemmBlock& block, float* scratch) {
  const int64_t rows = block.row_end - block.row_begin;
  if (rows <= kTileRows) {
    int64_t panel = block.panel_begin;
    if (rows == 1) {
      for (; panel + 4 <= block.panel_end; panel += 4) GemmNarrow<4, Weight>(g, block, panel);
    }
    for (; panel < block.panel_end; ++panel) GemmNarrow<1, Weight>(g, block, panel);
    return;
  }
  if (rows <= 2 * kTileRows) {  // widening twice costs less than through memory
    GemmBlock halves[2] = {block, block};
    halves[0].row_end = halves[1].row_begin = block.row_begin + (rows + 1) / 2;
    for (int64_t panel = block.panel_begin; panel < block.panel_end; ++panel) {
      for (const GemmBlock& half : halves) GemmNarrow<1, Weight>(g, half, panel);
    }
    return;
  }
  for (int64_t k_begin = 0; k_begin < g.k; k_begin += kGemmDepth) {
    const int64_t depth = g.k - k_begin < kGemmDepth ? g.k - k_begin : kGemmDepth;
    int64_t panel = block.panel_begin;
    for (; panel + kTilePanels <= block.panel_end; panel += kTilePanels) {
      GemmWide<kTilePanels, Weight>(g, block, panel, k_begin, depth, scratch);
    }
    for (; panel < block.panel_end; ++panel) {
      GemmWide<1, Weight>(g, block, panel, k_begin, depth, scratch);
    }
  }
}

void Gemm(const GemmArgs& g, const GemmBlock& block, float* scratch) {
  if (g.weight_type == WeightType::kBf16) {
    GemmTyped<uint16_t>(g, block, scratch);
  } else {
    GemmTyped<float>(g, block, scratch);
  }
}

}  // namespace
}  // namespace kvstore::kernels
