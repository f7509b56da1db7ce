// Attention on compute capability 9.0. Contract: attention.h.
//
// A block takes 64 query rows (tokens x query heads of one kv head) for each of its warpgroups of
// consumers, and walks over tiles of 128 keys. One producer thread copies tiles of K and V from
// their pages by tensor copies into a ring in shared memory; consumers run S = Q K^T and O += P V as
// warpgroup products, the products of one tile beside the softmax of the next. They do not take
// turns: on an H200 at its power limit (690 W) that cost 4 % at 64K, and gained nothing at 8K.
//
// Shared memory, 128-byte swizzle: K, V [stages][head_dim / 64][128 keys][64]; Q [warpgroups]
// [head_dim / 64][64 rows][64]; and the fold of earlier segments, float4 [head_dim / 8][threads].
#include <cstring>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/hopper.cuh"

namespace kvstore::kernels::cuda {
namespace {

constexpr int kKeys = kAttentionTileKeys;
constexpr int kSegmentTiles = kAttentionSegmentKeys / kAttentionTileKeys;
constexpr int kGroupThreads = 128;  // a warpgroup
constexpr float kLog2E = 1.44269504088896341f;
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

// ---- producer

template <typename S>
struct Producer {
  const Params& p;
  const CUtensorMap* map;
  Ring<S> ring;
  Turn<S> turn;

  __device__ void CopyTile(const Item& item, int tile, int64_t offset, uint32_t to,
                           uint32_t barrier) const {
    const AttentionArgs& a = p.args;
    const int keys_end = item.first_position + a.num_tokens;
    const int boxes =
        min(kKeys, (keys_end - tile * kKeys + p.box_rows - 1) / p.box_rows * p.box_rows) /
        p.box_rows;
    hopper::BarrierExpect(barrier, boxes * p.box_rows * S::kHeadDim * 2);
    for (int box = 0; box < boxes; ++box) {
      const int token = tile * kKeys + box * p.box_rows;
      const std::byte* page = a.pages[item.sequence * a.pages_stride + token / a.block_tokens];
      const int64_t in_pool = page - p.pool_base + offset;
      const int row = static_cast<int>(in_pool / (S::kHeadDim * 2)) +
                      item.kv_head * a.block_tokens + token % a.block_tokens;
#pragma unroll
      for (int half = 0; half < S::kHalves; ++half) {
        hopper::CopyBox(to + half * (kKeys * 128) + box * p.box_rows * 128, map, half * 64, row,
                        barrier);
      }
    }
  }

  __device__ void Run() {
    Item item;
    for (int index = 0; FindItem<S>(p, index, &item); ++index) {
      for (int tile = item.tile_begin; tile < item.tile_end; ++tile) {
        hopper::BarrierWait(ring.KeyEmpty(turn.stage), turn.parity ^ 1);
        CopyTile(item, tile, p.args.k_offset, ring.Key(turn.stage), ring.KeyFull(turn.stage));
        hopper::BarrierWait(ring.ValueEmpty(turn.stage), turn.parity ^ 1);
        CopyTile(item, tile, p.args.v_offset, ring.Value(turn.stage), ring.ValueFull(turn.stage));
        turn.Next();
      }
    }
  }
};

// ---- consumer

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float QuadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float QuadSum(float x) {
  x = __fadd_rn(x, __shfl_xor_sync(~0u, x, 1));
  return __fadd_rn(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float Finite(float maximum) {
  return maximum == -INFINITY ? 0.0f : maximum;
}
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}

// Running softmax of one row: over a segment, or over the segments folded so far.
struct RowState {
  float maximum = -INFINITY;
  float sum = 0.0f;
};

// Factors of the two sides of a fold. A side that saw no key has factor 0, the other then exactly 1.
struct FoldFactors {
  float before;
  float segment;
};

__device__ __forceinline__ FoldFactors FoldRow(RowState& before, const RowState& segment,
                                               float scale_log2) {
  const float maximum = fmaxf(before.maximum, segment.maximum);
  const float shift = Finite(maximum);
  const FoldFactors f{Exp2(__fmul_rn(__fsub_rn(before.maximum, shift), scale_log2)),
                      Exp2(__fmul_rn(__fsub_rn(segment.maximum, shift), scale_log2))};
  before.sum = __fmaf_rn(before.sum, f.before, __fmul_rn(segment.sum, f.segment));
  before.maximum = maximum;
  return f;
}
__device__ __forceinline__ float FoldValue(float before, float segment, FoldFactors f) {
  return __fmaf_rn(before, f.before, __fmul_rn(segment, f.segment));
}

template <typename S>
struct Consumer {
  static constexpr int kScores = kKeys / 2;  // registers: 64 rows x keys / 128 threads
  static constexpr int kOutputs = S::kHeadDim / 2;
  static constexpr int kDepth = S::kHeadDim / 16;  // steps of the first product

  const Params& p;
  Ring<S> ring;
  std::byte* shared;  // generic address of the ring's base
  int group;
  int thread;  // in its warpgroup
  Turn<S> turn;

  float scores[kScores];
  float output[kOutputs];
  uint32_t weights[kScores / 2];
  RowState row[2];     // of the segment: rows thread / 4 and that + 8 of the warp
  RowState folded[2];  // of the segments before
  int position[2];

  __device__ int lane() const { return thread % 32; }
  __device__ int RowInGroup(int i) const { return thread / 32 * 16 + lane() / 4 + 8 * i; }
  __device__ void SyncGroup() const { hopper::NamedSync(1 + group, kGroupThreads); }

  __device__ void Release(uint32_t barrier) const {
    if (lane() == 0) hopper::BarrierArrive(barrier);
  }

  // Where 16 bytes `chunk` of `in_group`'s row lie in this group's part of Q.
  __device__ std::byte* QueryAt(int in_group, int chunk) const {
    return shared + (ring.Query(group) - ring.base) + chunk / 8 * (64 * 128) + in_group * 128 +
           ((chunk % 8) ^ (in_group % 8)) * 16;
  }
  // The row of queries (or of output) that `in_group` stands for; null behind the last one.
  template <typename T>
  __device__ T* RowAt(const Item& item, T* base, int64_t stride, int in_group) const {
    const AttentionArgs& a = p.args;
    const int at = item.row_tile * S::kRows + group * 64 + in_group;
    if (at >= a.num_tokens * a.group) return nullptr;
    const int64_t token = item.sequence * a.num_tokens + at / a.group;
    return base + token * stride + (item.kv_head * a.group + at % a.group) * S::kHeadDim;
  }

  __device__ void LoadQueries(const Item& item) {
    constexpr int kChunks = S::kHeadDim / 8;
    SyncGroup();  // the rows of the item before have been stored from here
#pragma unroll
    for (int i = 0; i < 64 * kChunks / kGroupThreads; ++i) {
      const int at = i * kGroupThreads + thread, in_group = at / kChunks, chunk = at % kChunks;
      const __nv_bfloat16* from = RowAt(item, p.args.q, p.args.q_stride, in_group);
      uint4 value = make_uint4(0, 0, 0, 0);
      if (from != nullptr) value = reinterpret_cast<const uint4*>(from)[chunk];
      *reinterpret_cast<uint4*>(QueryAt(in_group, chunk)) = value;
    }
    hopper::FenceAsyncProxy();
    SyncGroup();
  }

  __device__ void StartScores(int stage) {
    hopper::Pin(scores);
    hopper::ProductFence();
#pragma unroll
    for (int step = 0; step < kDepth; ++step) {
      const uint32_t in_row = step % 4 * 32;
      hopper::Product(
          scores, hopper::Operand(ring.Query(group) + step / 4 * (64 * 128) + in_row, 16, 1024),
          hopper::Operand(ring.Key(stage) + step / 4 * (kKeys * 128) + in_row, 16, 1024), step > 0);
    }
    hopper::ProductCommit();
  }

  // O += P V, or O = P V where the tile begins a segment.
  __device__ void StartOutput(int stage, bool begins_segment) {
    hopper::Pin(output);
    hopper::ProductFence();
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      hopper::ProductTransposed(
          output, weights + 4 * step,
          hopper::Operand(ring.Value(stage) + step * (16 * 128), kKeys * 128, 1024),
          step > 0 || !begins_segment);
    }
    hopper::ProductCommit();
  }

  // Takes out the keys behind each row's own position.
  __device__ void Mask(int tile) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int visible = position[i] + 1 - tile * kKeys - lane() % 4 * 2;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        if (8 * n >= visible) scores[4 * n + 2 * i] = -INFINITY;
        if (8 * n + 1 >= visible) scores[4 * n + 2 * i + 1] = -INFINITY;
      }
    }
  }

  // Scores become weights relative to the new maximum; returns what earlier ones shrink by.
  __device__ __forceinline__ float Soften(int i) {
    float top = row[i].maximum;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      top = fmaxf(top, fmaxf(scores[4 * n + 2 * i], scores[4 * n + 2 * i + 1]));
    }
    top = QuadMax(top);
    const float shift = Finite(top);
    const float shrink = Exp2(__fmul_rn(__fsub_rn(row[i].maximum, shift), p.scale_log2));
    const float offset = -__fmul_rn(shift, p.scale_log2);
    float sum = __fmul_rn(row[i].sum, shrink);
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& score = scores[4 * n + 2 * i + e];
        score = Exp2(__fmaf_rn(score, p.scale_log2, offset));
        sum = __fadd_rn(sum, score);
      }
    }
    row[i].maximum = top;
    row[i].sum = sum;  // of this thread's keys
    return shrink;
  }

  __device__ __forceinline__ void PackWeights() {
#pragma unroll
    for (int i = 0; i < kScores / 2; ++i) weights[i] = PackBf16(scores[2 * i], scores[2 * i + 1]);
  }

  __device__ __forceinline__ void ShrinkOutput(float first, float second) {
#pragma unroll
    for (int n = 0; n < kOutputs / 4; ++n) {
      output[4 * n] = __fmul_rn(output[4 * n], first);
      output[4 * n + 1] = __fmul_rn(output[4 * n + 1], first);
      output[4 * n + 2] = __fmul_rn(output[4 * n + 2], second);
      output[4 * n + 3] = __fmul_rn(output[4 * n + 3], second);
    }
  }

  __device__ float4* FoldAt(int n) const {
    return reinterpret_cast<float4*>(shared + (ring.Fold() - ring.base)) +
           n * (S::kGroups * kGroupThreads) + group * kGroupThreads + thread;
  }

  // Folds the segment that ended (its `ended` states and `output`) into what came before. The result
  // stays in shared memory, or goes to `output` where it was the last segment.
  __device__ __forceinline__ void Fold(RowState (&ended)[2], bool is_first, bool is_last) {
    ended[0].sum = QuadSum(ended[0].sum);
    ended[1].sum = QuadSum(ended[1].sum);
    if (is_first) {
      folded[0] = ended[0];
      folded[1] = ended[1];
      if (is_last) return;
#pragma unroll
      for (int n = 0; n < kOutputs / 4; ++n) {
        *FoldAt(n) =
            make_float4(output[4 * n], output[4 * n + 1], output[4 * n + 2], output[4 * n + 3]);
      }
      return;
    }
    const FoldFactors first = FoldRow(folded[0], ended[0], p.scale_log2);
    const FoldFactors second = FoldRow(folded[1], ended[1], p.scale_log2);
#pragma unroll
    for (int n = 0; n < kOutputs / 4; ++n) {
      float4 before = *FoldAt(n);
      before.x = FoldValue(before.x, output[4 * n], first);
      before.y = FoldValue(before.y, output[4 * n + 1], first);
      before.z = FoldValue(before.z, output[4 * n + 2], second);
      before.w = FoldValue(before.w, output[4 * n + 3], second);
      if (!is_last) {
        *FoldAt(n) = before;
      } else {
        output[4 * n] = before.x;
        output[4 * n + 1] = before.y;
        output[4 * n + 2] = before.z;
        output[4 * n + 3] = before.w;
      }
    }
  }

  // Values behind the last token of the sequence become zeros: they were never written, and 0 x NaN
  // is NaN. Every warpgroup writes the same zeros.
  __device__ void ClearTail(const Item& item, int tile, int stage) const {
    const int keys = item.first_position + p.args.num_tokens - tile * kKeys;
    if (keys >= kKeys) return;
    std::byte* values = shared + (ring.Value(stage) - ring.base);
    for (int at = thread; at < (kKeys - keys) * 8 * S::kHalves; at += kGroupThreads) {
      const int half = at / ((kKeys - keys) * 8), in_half = at % ((kKeys - keys) * 8);
      *reinterpret_cast<uint4*>(values + half * (kKeys * 128) + keys * 128 + in_half * 16) =
          make_uint4(0, 0, 0, 0);
    }
    hopper::FenceAsyncProxy();
    SyncGroup();
  }

  __device__ void FinishScores(int tile, int unmasked_tiles) {
    hopper::Pin(scores);
    if (tile >= unmasked_tiles) Mask(tile);
  }

  __device__ void RunItem(const Item& item) {
    LoadQueries(item);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      position[i] = item.first_position +
                    (item.row_tile * S::kRows + group * 64 + RowInGroup(i)) / p.args.group;
      row[i] = RowState();
    }
    // Tiles before this one are seen whole by every row of the warpgroup.
    const int unmasked_tiles =
        (item.first_position + (item.row_tile * S::kRows + group * 64) / p.args.group + 1) / kKeys;

    hopper::BarrierWait(ring.KeyFull(turn.stage), turn.parity);
    StartScores(turn.stage);
    hopper::ProductWait<0>();
    Release(ring.KeyEmpty(turn.stage));
    FinishScores(item.tile_begin, unmasked_tiles);
    Soften(0);
    Soften(1);
    PackWeights();
    for (int tile = item.tile_begin + 1; tile < item.tile_end; ++tile) {
      const Turn<S> before = turn;
      turn.Next();
      hopper::BarrierWait(ring.KeyFull(turn.stage), turn.parity);
      StartScores(turn.stage);
      hopper::BarrierWait(ring.ValueFull(before.stage), before.parity);
      StartOutput(before.stage, (tile - 1) % kSegmentTiles == 0);
      hopper::ProductWait<1>();
      Release(ring.KeyEmpty(turn.stage));
      FinishScores(tile, unmasked_tiles);
      if (!S::kSplit && tile % kSegmentTiles == 0) {
        RowState ended[2] = {row[0], row[1]};
        row[0] = RowState();
        row[1] = RowState();
        Soften(0);
        Soften(1);
        hopper::ProductWait<0>();
        hopper::Pin(output);
        Release(ring.ValueEmpty(before.stage));
        Fold(ended, tile == kSegmentTiles, false);
      } else {
        const float first = Soften(0), second = Soften(1);
        hopper::ProductWait<0>();
        hopper::Pin(output);
        Release(ring.ValueEmpty(before.stage));
        ShrinkOutput(first, second);
      }
      PackWeights();
    }
    hopper::BarrierWait(ring.ValueFull(turn.stage), turn.parity);
    ClearTail(item, item.tile_end - 1, turn.stage);
    StartOutput(turn.stage, (item.tile_end - 1) % kSegmentTiles == 0);
    hopper::ProductWait<0>();
    hopper::Pin(output);
    Release(ring.ValueEmpty(turn.stage));
    turn.Next();
    Fold(row, item.tile_end <= kSegmentTiles || S::kSplit, true);
    if constexpr (S::kSplit) {
      StorePart(item);
    } else {
      StoreRows(item);
    }
  }

  // The segment's sums, unnormalised: [parts][rows][head_dim] floats, then [parts][rows][2].
  __device__ void StorePart(const Item& item) const {
    const int64_t parts = static_cast<int64_t>(gridDim.x) * gridDim.y * gridDim.z;
    const int64_t part =
        (static_cast<int64_t>(item.sequence) * gridDim.y + blockIdx.y) * p.segments_max +
        item.segment;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t at = part * S::kRows + group * 64 + RowInGroup(i);
      float* to = p.args.workspace + at * S::kHeadDim + lane() % 4 * 2;
#pragma unroll
      for (int n = 0; n < kOutputs / 4; ++n) {
        *reinterpret_cast<float2*>(to + 8 * n) =
            make_float2(output[4 * n + 2 * i], output[4 * n + 2 * i + 1]);
      }
      if (lane() % 4 == 0) {
        *reinterpret_cast<float2*>(p.args.workspace + parts * S::kRows * S::kHeadDim + at * 2) =
            make_float2(folded[i].maximum, folded[i].sum);
      }
    }
  }

  __device__ void StoreRows(const Item& item) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float factor = __frcp_rn(folded[i].sum);
      const int in_group = RowInGroup(i);
#pragma unroll
      for (int n = 0; n < kOutputs / 4; ++n) {
        const uint32_t pair = PackBf16(__fmul_rn(output[4 * n + 2 * i], factor),
                                       __fmul_rn(output[4 * n + 2 * i + 1], factor));
        *reinterpret_cast<uint32_t*>(QueryAt(in_group, n) + lane() % 4 * 4) = pair;
      }
    }
    SyncGroup();
    constexpr int kChunks = S::kHeadDim / 8;
#pragma unroll
    for (int i = 0; i < 64 * kChunks / kGroupThreads; ++i) {
      const int at = i * kGroupThreads + thread, in_group = at / kChunks, chunk = at % kChunks;
      __nv_bfloat16* to = RowAt(item, p.args.out, p.args.out_stride, in_group);
      if (to == nullptr) continue;
      reinterpret_cast<uint4*>(to)[chunk] =
          *reinterpret_cast<const uint4*>(QueryAt(in_group, chunk));
    }
  }

  __device__ void Run() {
    Item item;
    for (int index = 0; FindItem<S>(p, index, &item); ++index) {
      if (item.tile_begin < item.tile_end) RunItem(item);
    }
  }
};

template <typename S>
__global__ void __launch_bounds__(S::kThreads, 1)
    AttentionKernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ Params p) {
  extern __shared__ std::byte raw[];
  const uint32_t start = hopper::SharedAddress(raw);
  const Ring<S> ring{(start + 1023) / 1024 * 1024};
  if (threadIdx.x == 0) {
    hopper::PrefetchMap(&map);
    for (int stage = 0; stage < S::kStages; ++stage) {
      hopper::BarrierInit(ring.KeyFull(stage), 1);
      hopper::BarrierInit(ring.ValueFull(stage), 1);
      hopper::BarrierInit(ring.KeyEmpty(stage), 4 * S::kGroups);  // its warps
      hopper::BarrierInit(ring.ValueEmpty(stage), 4 * S::kGroups);
    }
    hopper::BarrierInitFence();
  }
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads;
  if (group == S::kGroups) {
    if constexpr (S::kGroups == 2) hopper::GiveRegisters<40>();
    if (threadIdx.x == S::kGroups * kGroupThreads) {
      Producer<S> producer{p, &map, ring, {}};
      producer.Run();
    }
  } else {
    if constexpr (S::kGroups == 2) hopper::TakeRegisters<232>();
    Consumer<S> consumer{
        p, ring, raw + (ring.base - start), group, static_cast<int>(threadIdx.x) % kGroupThreads,
        {}};
    consumer.Run();
  }
}

// Folds the segments of a row from the left: one warp a row, head_dim / 32 values a lane.
template <typename S>
__global__ void __launch_bounds__(128) FoldKernel(const __grid_constant__ Params p) {
  constexpr int kValues = S::kHeadDim / 32;
  const AttentionArgs& a = p.args;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int at = static_cast<int>(blockIdx.x) * 4 + static_cast<int>(threadIdx.x) / 32;
  const int kv_head = static_cast<int>(blockIdx.y), sequence = static_cast<int>(blockIdx.z);
  if (at >= a.num_tokens * a.group) return;
  const int64_t parts_a_sequence = static_cast<int64_t>(p.row_tiles) * a.kv_heads * p.segments_max;
  const int64_t parts = parts_a_sequence * a.num_sequences;
  const int64_t first_part =
      sequence * parts_a_sequence +
      (static_cast<int64_t>(at / S::kRows) * a.kv_heads + kv_head) * p.segments_max;
  const int position = a.first_positions[sequence] + at / a.group;
  const int segments = position / kAttentionSegmentKeys + 1;

  RowState state;
  float values[kValues];
  for (int segment = 0; segment < segments; ++segment) {
    const int64_t from = (first_part + segment) * S::kRows + at % S::kRows;
    const float* part = a.workspace + from * S::kHeadDim + lane * kValues;
    const float2 sums =
        *reinterpret_cast<const float2*>(a.workspace + parts * S::kRows * S::kHeadDim + from * 2);
    const RowState ended{sums.x, sums.y};
    if (segment == 0) {
      state = ended;
#pragma unroll
      for (int i = 0; i < kValues; ++i) values[i] = part[i];
      continue;
    }
    const FoldFactors factors = FoldRow(state, ended, p.scale_log2);
#pragma unroll
    for (int i = 0; i < kValues; ++i) values[i] = FoldValue(values[i], part[i], factors);
  }
  const float factor = __frcp_rn(state.sum);
  __nv_bfloat16* to =
      a.out + (static_cast<int64_t>(sequence) * a.num_tokens + at / a.group) * a.out_stride +
      (kv_head * a.group + at % a.group) * S::kHeadDim + lane * kValues;
#pragma unroll
  for (int i = 0; i < kValues; i += 2) {
    *reinterpret_cast<uint32_t*>(to + i) =
        PackBf16(__fmul_rn(values[i], factor), __fmul_rn(values[i + 1], factor));
  }
}

// ---- host

int CeilDiv(int a, int b) { return (a + b - 1) / b; }

bool IsValid(const AttentionArgs& a) {
  return (a.head_dim == 64 || a.head_dim == 128) && a.block_tokens > 0 &&
         a.block_tokens % 64 == 0 && a.kv_heads > 0 && a.group > 0 && a.num_tokens > 0 &&
         a.num_sequences > 0 && a.num_sequences <= 65535 && a.keys_max >= a.num_tokens &&
         a.scale > 0 && a.k_offset % 256 == 0 && a.v_offset % 256 == 0 && a.q_stride % 8 == 0 &&
         a.out_stride % 8 == 0 && int64_t{a.num_tokens} * a.group < int64_t{1} << 30;
}

// Few rows: 64 of them are enough for a block.
int GroupsOf(const AttentionArgs& a) { return a.num_tokens * a.group <= 64 ? 1 : 2; }
int RowTilesOf(const AttentionArgs& a) { return CeilDiv(a.num_tokens * a.group, 64 * GroupsOf(a)); }
int SegmentsOf(const AttentionArgs& a) { return CeilDiv(a.keys_max, kAttentionSegmentKeys); }

// As many kv heads as have their keys and values in half of the second-level cache together.
int HeadsTogether(const AttentionArgs& a) {
  constexpr int64_t kCacheBytes = 32 << 20;
  const int64_t head_bytes = int64_t{a.keys_max} * a.head_dim * 2 * 2;
  const int64_t heads = kCacheBytes / head_bytes;
  return static_cast<int>(heads < 1 ? 1 : (heads < a.kv_heads ? heads : a.kv_heads));
}

bool IsSplit(const AttentionArgs& a, int num_multiprocessors, AttentionSplit split) {
  if (split != AttentionSplit::kAuto) return split == AttentionSplit::kSegments;
  return a.num_sequences > 1 || GroupsOf(a) == 1 ||
         RowTilesOf(a) * a.kv_heads * 2 <= num_multiprocessors;
}

template <typename S>
cudaError_t Launch(const Params& p, const KvPool& pool, int num_multiprocessors,
                   cudaStream_t stream) {
  const auto kernel = AttentionKernel<S>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes);
  if (error != cudaSuccess) return error;
  const AttentionArgs& a = p.args;
  if constexpr (!S::kSplit) {
    const int items = p.row_tiles * a.kv_heads;
    const int blocks = items < num_multiprocessors ? items : num_multiprocessors;
    kernel<<<blocks, S::kThreads, S::kSharedBytes, stream>>>(pool.map, p);
    return cudaGetLastError();
  } else {
    const dim3 grid(p.segments_max, p.row_tiles * a.kv_heads, a.num_sequences);
    kernel<<<grid, S::kThreads, S::kSharedBytes, stream>>>(pool.map, p);
    const cudaError_t launched = cudaGetLastError();
    if (launched != cudaSuccess) return launched;
    const dim3 rows(CeilDiv(a.num_tokens * a.group, 4), a.kv_heads, a.num_sequences);
    FoldKernel<S><<<rows, 128, 0, stream>>>(p);
    return cudaGetLastError();
  }
}

template <int kHeadDim>
cudaError_t LaunchFor(const Params& p, const KvPool& pool, int num_multiprocessors, bool is_split,
                      cudaStream_t stream) {
  if (!is_split) return Launch<Shape<kHeadDim, 2, false>>(p, pool, num_multiprocessors, stream);
  if (GroupsOf(p.args) == 1) {
    return Launch<Shape<kHeadDim, 1, true>>(p, pool, num_multiprocessors, stream);
  }
  return Launch<Shape<kHeadDim, 2, true>>(p, pool, num_multiprocessors, stream);
}

}  // namespace

cudaError_t MakeKvPool(const std::byte* base, size_t pool_bytes, int head_dim, int block_tokens,
                       KvPool* pool) {
  const size_t row_bytes = static_cast<size_t>(head_dim) * 2;
  if ((head_dim != 64 && head_dim != 128) || block_tokens <= 0 || block_tokens % 64 != 0 ||
      reinterpret_cast<uintptr_t>(base) % 256 != 0 || pool_bytes < row_bytes ||
      pool_bytes / row_bytes > size_t{1} << 31) {
    return cudaErrorInvalidValue;
  }
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                             12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) return error;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(head_dim), pool_bytes / row_bytes};
  const cuuint64_t strides[1] = {row_bytes};
  const cuuint32_t box[2] = {64, block_tokens % kKeys == 0 ? 128u : 64u};
  const cuuint32_t element_strides[2] = {1, 1};
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry)(
      &pool->map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<std::byte*>(base), sizes, strides,
      box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  pool->base = base;
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

size_t AttentionWorkspaceBytes(const AttentionArgs& args, int num_multiprocessors,
                               AttentionSplit split) {
  if (!IsValid(args) || !IsSplit(args, num_multiprocessors, split)) return 0;
  const size_t rows = static_cast<size_t>(args.num_sequences) * RowTilesOf(args) * args.kv_heads *
                      SegmentsOf(args) * 64 * GroupsOf(args);
  return rows * (args.head_dim + 2) * sizeof(float);
}

cudaError_t LaunchAttention(const AttentionArgs& args, const KvPool& pool, int num_multiprocessors,
                            AttentionSplit split, cudaStream_t stream) {
  const bool is_split = IsSplit(args, num_multiprocessors, split);
  if (!IsValid(args) || (!is_split && args.num_sequences != 1) || num_multiprocessors < 1 ||
      (is_split && args.workspace == nullptr) || RowTilesOf(args) * args.kv_heads > 65535) {
    return cudaErrorInvalidValue;
  }
  Params p{.args = args,
           .pool_base = pool.base,
           .box_rows = args.block_tokens % kKeys == 0 ? 128 : 64,
           .row_tiles = RowTilesOf(args),
           .segments_max = is_split ? SegmentsOf(args) : 0,
           .heads_together = HeadsTogether(args),
           .scale_log2 = args.scale * kLog2E};
  return args.head_dim == 64 ? LaunchFor<64>(p, pool, num_multiprocessors, is_split, stream)
                             : LaunchFor<128>(p, pool, num_multiprocessors, is_split, stream);
}

}  // namespace kvstore::kernels::cuda
