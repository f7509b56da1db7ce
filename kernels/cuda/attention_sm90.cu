// Attention on compute capability 9.0. Contract: attention.h.
//
// A block takes 64 query rows (tokens x query heads of one kv head) for each of its warpgroups of
// consumers, and walks over tiles of 128 keys. One producer thread copies tiles of K and V from
// their pages by tensor copies into a ring in shared memory; consumers run S = Q K^T and O += P V as
// warpgroup products, the products of one tile beside the softmax of the next. They do not take
// turns: on an H200 at its power limit (690 W) that cost 4 % at 64K, and gained nothing at 8K.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_consumer.cuh"
#include "kernels/cuda/attention_fold.cuh"
#include "kernels/cuda/attention_work.cuh"
#include "kernels/cuda/hopper.cuh"

namespace kvstore::kernels::cuda {
namespace {

using namespace attention_sm90;

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
