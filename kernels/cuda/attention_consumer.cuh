// One warpgroup of consumers: 64 query rows against tiles of keys as they arrive. Only for
// attention_sm90.cu.
#pragma once

#include "kernels/cuda/attention_fold.cuh"
#include "kernels/cuda/attention_work.cuh"
#include "kernels/cuda/hopper.cuh"

namespace kvstore::kernels::cuda::attention_sm90 {

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

}  // namespace kvstore::kernels::cuda::attention_sm90
