// How attention on compute capability 9.0 is cut into work for blocks, and what a block has in shared
// memory. Only for attention_sm90.cu.
//
// Shared memory, 128-byte swizzle: K, V [stages][head_dim / 64][128 keys][64]; Q [warpgroups]
// [head_dim / 64][64 rows][64]; and the fold of earlier segments, float4 [head_dim / 8][threads].
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/attention.h"

namespace kvstore::kernels::cuda::attention_sm90 {

inline constexpr int kKeys = kAttentionTileKeys;
inline constexpr int kSegmentTiles = kAttentionSegmentKeys / kAttentionTileKeys;
inline constexpr int kGroupThreads = 128;  // a warpgroup
inline constexpr float kLog2E = 1.44269504088896341f;
static_assert(kAttentionSegmentKeys % kAttentionTileKeys == 0);

struct Params {
  AttentionArgs args;
  const std::byte* pool_base;
  int32_t box_rows;        // of a tensor copy
  int32_t row_tiles;       // of a sequence and kv head
  int32_t segments_max;    // of a sequence, kSegments only
  int32_t heads_together;  // kv heads that blocks work on at a time, kNever only
  float scale_log2;        // exp2(x * scale_log2) = exp(x * scale)
};

template <int kHeadDim_, int kGroups_, bool kSplit_>
struct Shape {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kGroups = kGroups_;  // of consumers
  static constexpr bool kSplit = kSplit_;
  static constexpr int kRows = 64 * kGroups;
  static constexpr int kThreads = kGroupThreads * (kGroups + 1);
  static constexpr int kStages = kSplit ? 3 : 2;
  static constexpr int kHalves = kHeadDim / 64;
  static constexpr int kTileBytes = kKeys * kHeadDim * 2;
  static constexpr int kGroupQueryBytes = 64 * kHeadDim * 2;
  static constexpr int kFoldBytes = kSplit ? 0 : kRows * kHeadDim * 4;
  static constexpr int kBarrierBytes = 4 * kStages * 8;
  static constexpr int kSharedBytes = 2 * kStages * kTileBytes + kGroups * kGroupQueryBytes +
                                      kFoldBytes + kBarrierBytes + 1024;  // to align by hand
  static_assert(kSharedBytes <= 232448);
};

// What a block works on at a time.
struct Item {
  int sequence;
  int kv_head;
  int row_tile;
  int first_position;
  int tile_begin;  // of keys
  int tile_end;
  int segment;
};

// Addresses in shared memory.
template <typename S>
struct Ring {
  uint32_t base;
  __device__ uint32_t Key(int stage) const { return base + stage * S::kTileBytes; }
  __device__ uint32_t Value(int stage) const { return base + (S::kStages + stage) * S::kTileBytes; }
  __device__ uint32_t Query(int group) const {
    return base + 2 * S::kStages * S::kTileBytes + group * S::kGroupQueryBytes;
  }
  __device__ uint32_t Fold() const { return Query(S::kGroups); }
  __device__ uint32_t Barrier(int kind, int stage) const {
    return Fold() + S::kFoldBytes + (kind * S::kStages + stage) * 8;
  }
  __device__ uint32_t KeyFull(int stage) const { return Barrier(0, stage); }
  __device__ uint32_t KeyEmpty(int stage) const { return Barrier(1, stage); }
  __device__ uint32_t ValueFull(int stage) const { return Barrier(2, stage); }
  __device__ uint32_t ValueEmpty(int stage) const { return Barrier(3, stage); }
};

// Which stage a running count of tiles is at, and the parity of its barriers.
template <typename S>
struct Turn {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void Next() {
    if (++stage == S::kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

template <typename S>
__device__ int TilesOf(const Params& p, const Item& item) {
  const int rows = p.args.num_tokens * p.args.group;
  const int last_row = min((item.row_tile + 1) * S::kRows, rows) - 1;
  return (item.first_position + last_row / p.args.group) / kKeys + 1;
}

// The `index`-th item of this block, perhaps without tiles; false behind the last. Rows with most keys come first, and
// blocks take rounds in alternating order, so that all of them end at about the same time.
template <typename S>
__device__ bool FindItem(const Params& p, int index, Item* item) {
  if constexpr (S::kSplit) {
    if (index > 0) return false;
    item->segment = static_cast<int>(blockIdx.x);
    item->kv_head = static_cast<int>(blockIdx.y) % p.args.kv_heads;
    item->row_tile = static_cast<int>(blockIdx.y) / p.args.kv_heads;
    item->sequence = static_cast<int>(blockIdx.z);
    item->first_position = p.args.first_positions[item->sequence];
    item->tile_begin = item->segment * kSegmentTiles;
    item->tile_end = min(item->tile_begin + kSegmentTiles, TilesOf<S>(p, *item));
    return item->tile_begin < item->tile_end;
  } else {
    // A group of heads after another, so that what blocks read at a time stays in the second-level
    // cache; each group in rounds of one item a block.
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    const int rounds = (p.row_tiles * p.heads_together + blocks - 1) / blocks;
    const int head_group = index / rounds, round = index % rounds;
    const int first_head = head_group * p.heads_together;
    if (first_head >= p.args.kv_heads) return false;
    const int heads = min(p.heads_together, p.args.kv_heads - first_head);
    const bool is_reversed = (round + head_group) % 2 == 1;
    const int at = round * blocks + (is_reversed ? blocks - 1 - block : block);
    item->segment = 0;
    item->sequence = 0;
    if (at >= p.row_tiles * heads) {  // this round has nothing for this block
      item->tile_begin = item->tile_end = 0;
      return true;
    }
    item->kv_head = first_head + at % heads;
    item->row_tile = p.row_tiles - 1 - at / heads;
    item->first_position = p.args.first_positions[0];
    item->tile_begin = 0;
    item->tile_end = TilesOf<S>(p, *item);
    return true;
  }
}

}  // namespace kvstore::kernels::cuda::attention_sm90
