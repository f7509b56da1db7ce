// Attention over paged keys and values, on the Vec16 of the including variant. Contract:
// kernels/attention.h.
//
// Both products run on the GEMM's tile (gemm_impl.h): scores = Q K^T with keys as columns, then O =
// O * rescale + P V with head dimensions as columns. Rows are ordered token by token, so a tile of
// rows sees nearly the same keys, and each tile stops at the last key its rows may see: a key
// beyond would only add exact zeros.
#pragma once

#include "kernels/attention.h"
#include "kernels/isa/exp2_impl.h"
#include "kernels/isa/gemm_impl.h"

namespace kvstore::kernels {
namespace {

inline constexpr float kLog2E = 1.44269504088896341f;

// The state of one call, carved out of the caller's scratch.
struct AttentionState {
  const AttentionArgs& args;
  AttentionBlock block;
  int64_t rows;
  float* q;        // [rows, head_dim], scaled so that exp2 gives the softmax
  float* o;        // [rows, value_dim]
  float* scores;   // [rows, kAttentionTileKeys]
  float* keys;     // [tile / 16][head_dim][16]
  float* values;   // [value_dim / 16][tile][16]
  float* maximum;  // [rows]
  float* sum;      // [rows]
  float* rescale;  // [rows]
  float* zeros;    // [head_dim]

  int64_t PositionOfRow(int64_t row) const {
    return args.first_position + block.token_begin + row / args.group;
  }
  // Keys of the tile at `tile_begin` that `row` may see.
  int64_t VisibleKeys(int64_t row, int64_t tile_begin) const {
    const int64_t n = PositionOfRow(row) + 1 - tile_begin;
    return n < 0 ? 0 : (n < kAttentionTileKeys ? n : kAttentionTileKeys);
  }
};

inline int64_t RoundUp16(int64_t n) { return (n + 15) / 16 * 16; }

inline AttentionState CarveScratch(const AttentionArgs& args, const AttentionBlock& block,
                                   float* scratch) {
  AttentionState s{args,    block,   (block.token_end - block.token_begin) * args.group,
                   nullptr, nullptr, nullptr,
                   nullptr, nullptr, nullptr,
                   nullptr, nullptr, nullptr};
  const auto take = [&scratch](int64_t floats) {
    float* at = scratch;
    scratch += floats;
    return at;
  };
  s.q = take(kAttentionRowsMax * args.head_dim);
  s.o = take(kAttentionRowsMax * args.value_dim);
  s.scores = take(kAttentionRowsMax * kAttentionTileKeys);
  s.keys = take(kAttentionTileKeys * args.head_dim);
  s.values = take(kAttentionTileKeys * args.value_dim);
  s.maximum = take(kAttentionRowsMax);
  s.sum = take(kAttentionRowsMax);
  s.rescale = take(kAttentionRowsMax);
  s.zeros = take(args.head_dim);
  return s;
}

inline void GatherQueries(const AttentionState& s) {
  const AttentionArgs& a = s.args;
  const Vec16 factor = Set(a.scale * kLog2E);
  for (int64_t row = 0; row < s.rows; ++row) {
    const int64_t token = s.block.token_begin + row / a.group;
    const int64_t head = s.block.kv_head * a.group + row % a.group;
    const float* from = a.q + token * a.q_stride + head * a.head_dim;
    for (int64_t d = 0; d < a.head_dim; d += 16) {
      Store(s.q + row * a.head_dim + d, Mul(Load(from + d), factor));
    }
    s.maximum[row] = -__builtin_inff();
    s.sum[row] = 0.0f;
  }
  for (int64_t d = 0; d < a.head_dim; ++d) s.zeros[d] = 0.0f;
}

template <typename Element>
inline void TransposeKeys(const Element* const src[16], int64_t dims, float* dst) {
  if constexpr (sizeof(Element) == 2) {
    TransposeBf16(src, dims, dst);
  } else {
    TransposeF32(src, dims, dst);
  }
}

// The stored vector of `position`, or zeros at and behind `position_end`: those bytes are never
// read.
template <typename Element>
inline const Element* RowAt(const AttentionState& s, int64_t offset, int64_t position,
                            int64_t position_end) {
  if (position >= position_end) return reinterpret_cast<const Element*>(s.zeros);
  const AttentionArgs& a = s.args;
  const auto* base = reinterpret_cast<const Element*>(a.pages[position / a.block_tokens] + offset);
  return base + (s.block.kv_head * a.block_tokens + position % a.block_tokens) * a.head_dim;
}

// Widens the tile's keys and values; behind `position_end` they are zeros.
template <typename Element>
inline void LoadTile(const AttentionState& s, int64_t tile_begin, int64_t position_end) {
  const AttentionArgs& a = s.args;
  const int64_t left = position_end - tile_begin;
  const int64_t keys = RoundUp16(left < kAttentionTileKeys ? left : kAttentionTileKeys);
  for (int64_t key = 0; key < keys; key += 16) {
    const Element* rows[16];
    for (int i = 0; i < 16; ++i) {
      rows[i] = RowAt<Element>(s, a.k_offset, tile_begin + key + i, position_end);
    }
    TransposeKeys(rows, a.head_dim, s.keys + key * a.head_dim);
  }
  for (int64_t key = 0; key < keys; ++key) {
    const Element* row = RowAt<Element>(s, a.v_offset, tile_begin + key, position_end);
    for (int64_t d = 0; d < a.value_dim; d += 16) {
      Store(s.values + d * kAttentionTileKeys + key * 16, LoadWeights(row + d));
    }
  }
}

template <int kPanels>
inline void ScorePanels(const AttentionState& s, int64_t tile_begin, int64_t key) {
  const int64_t dim = s.args.head_dim;
  Tile<float> t{s.q,          dim, s.keys + key * dim, 16 * dim, s.scores + key, kAttentionTileKeys,
                16 * kPanels, dim, Start::kZero,       nullptr};
  for (int64_t row = 0; row < s.rows; row += kTileRows) {
    const int64_t rows = s.rows - row < kTileRows ? s.rows - row : kTileRows;
    if (s.VisibleKeys(row + rows - 1, tile_begin) <= key) continue;
    t.a = s.q + row * dim;
    t.c = s.scores + row * kAttentionTileKeys + key;
    ComputeRows<kPanels>(t, rows);
  }
}

inline void ComputeScores(const AttentionState& s, int64_t tile_begin, int64_t keys) {
  int64_t key = 0;
  for (; key + 16 * kTilePanels <= keys; key += 16 * kTilePanels) {
    ScorePanels<kTilePanels>(s, tile_begin, key);
  }
  for (; key < keys; key += 16) ScorePanels<1>(s, tile_begin, key);
}

// Turns the scores of `row` into weights exp2(score - maximum); `keys` is what the row's tile of
// rows uses.
inline void SoftmaxRow(const AttentionState& s, int64_t row, int64_t visible, int64_t keys) {
  float* scores = s.scores + row * kAttentionTileKeys;
  const int64_t end = RoundUp16(keys);
  for (int64_t i = visible; i < end; ++i) scores[i] = -__builtin_inff();
  Vec16 top = Set(-__builtin_inff());
  for (int64_t i = 0; i < end; i += 16) top = Max(top, Load(scores + i));
  const float old = s.maximum[row];
  const float row_top = ReduceMax(top);
  const float maximum = old > row_top ? old : row_top;
  const Vec16 shift = Set(maximum);
  Vec16 sum = Zero();
  for (int64_t i = 0; i < end; i += 16) {
    const Vec16 weight = Exp2(Sub(Load(scores + i), shift));
    Store(scores + i, weight);
    sum = Add(sum, weight);
  }
  const float rescale = Exp2(old - maximum);
  s.maximum[row] = maximum;
  s.rescale[row] = rescale;
  s.sum[row] = __builtin_fmaf(s.sum[row], rescale, ReduceAdd(sum));
}

template <int kPanels>
inline void AccumulatePanels(const AttentionState& s, int64_t tile_begin, int64_t dim_begin) {
  const int64_t dim = s.args.value_dim;
  Tile<float> t{s.scores,
                kAttentionTileKeys,
                s.values + dim_begin * kAttentionTileKeys,
                16 * kAttentionTileKeys,
                s.o,
                dim,
                16 * kPanels,
                0,
                tile_begin == 0 ? Start::kZero : Start::kScaledC,
                nullptr};
  for (int64_t row = 0; row < s.rows; row += kTileRows) {
    const int64_t rows = s.rows - row < kTileRows ? s.rows - row : kTileRows;
    t.depth = s.VisibleKeys(row + rows - 1, tile_begin);
    if (t.depth == 0) continue;
    t.a = s.scores + row * kAttentionTileKeys;
    t.c = s.o + row * dim + dim_begin;
    t.start_values = s.rescale + row;
    ComputeRows<kPanels>(t, rows);
  }
}

inline void AccumulateValues(const AttentionState& s, int64_t tile_begin) {
  int64_t dim = 0;
  for (; dim + 16 * kTilePanels <= s.args.value_dim; dim += 16 * kTilePanels) {
    AccumulatePanels<kTilePanels>(s, tile_begin, dim);
  }
  for (; dim < s.args.value_dim; dim += 16) AccumulatePanels<1>(s, tile_begin, dim);
}

inline void WriteOutput(const AttentionState& s) {
  const AttentionArgs& a = s.args;
  for (int64_t row = 0; row < s.rows; ++row) {
    const int64_t token = s.block.token_begin + row / a.group;
    const int64_t head = s.block.kv_head * a.group + row % a.group;
    float* to = a.out + token * a.out_stride + head * a.value_dim;
    const Vec16 inverse = Set(1.0f / s.sum[row]);
    for (int64_t d = 0; d < a.value_dim; d += 16) {
      // + 0: skipped exact zeros may have left -0 where adding them would have given +0.
      Store(to + d, Add(Mul(Load(s.o + row * a.value_dim + d), inverse), Zero()));
    }
  }
}

void Attention(const AttentionArgs& args, const AttentionBlock& block, float* scratch) {
  const AttentionState s = CarveScratch(args, block, scratch);
  GatherQueries(s);
  const int64_t position_end = args.first_position + block.token_end;
  for (int64_t begin = 0; begin < position_end; begin += kAttentionTileKeys) {
    if (args.kv_type == KvType::kBf16) {
      LoadTile<uint16_t>(s, begin, position_end);
    } else {
      LoadTile<float>(s, begin, position_end);
    }
    const int64_t left = position_end - begin;
    ComputeScores(s, begin, RoundUp16(left < kAttentionTileKeys ? left : kAttentionTileKeys));
    for (int64_t row = 0; row < s.rows; ++row) {
      const int64_t tile_last = row / kTileRows * kTileRows + kTileRows - 1;
      const int64_t keys = s.VisibleKeys(tile_last < s.rows ? tile_last : s.rows - 1, begin);
      if (keys > 0) SoftmaxRow(s, row, s.VisibleKeys(row, begin), keys);
    }
    AccumulateValues(s, begin);
  }
  WriteOutput(s);
}

}  // namespace
}  // namespace kvstore::kernels
