// Row-local operations. Contract: rows.h. All are bound by memory: 16 bytes an access, one pass.
#include <cmath>
#include <cstring>

#include "kernels/cuda/rows.h"

namespace kvstore::kernels::cuda {
namespace {

constexpr int kVector = 8;  // bf16 values of 16 bytes
constexpr int kRowThreads = 256;

// Eight bf16 values as they lie in memory.
struct alignas(16) Vector {
  __nv_bfloat162 pair[kVector / 2];
};

__device__ __forceinline__ void Widen(const Vector& v, float (&out)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) {
    const float2 pair = __bfloat1622float2(v.pair[i]);
    out[2 * i] = pair.x;
    out[2 * i + 1] = pair.y;
  }
}
__device__ __forceinline__ Vector Narrow(const float (&x)[kVector]) {
  Vector v;
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) v.pair[i] = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
  return v;
}
__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = __fadd_rn(x, __shfl_xor_sync(~0u, x, step));
  return x;
}

// The grid's part of `items`, for one-pass kernels over independent vectors.
int BlocksFor(int64_t items) { return static_cast<int>((items + kRowThreads - 1) / kRowThreads); }

// ---- embedding

__global__ void __launch_bounds__(kRowThreads) EmbedKernel(const EmbedArgs a) {
  const int64_t vectors = a.n / kVector;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (at >= a.rows * vectors) return;
  const auto* from = reinterpret_cast<const Vector*>(a.table + a.tokens[at / vectors] * a.n);
  reinterpret_cast<Vector*>(a.out)[at] = from[at % vectors];
}

// ---- norm: a block has a row, in registers

template <int kVectors>  // of a thread
__global__ void __launch_bounds__(kRowThreads) NormKernel(const NormArgs a) {
  __shared__ float warp_sums[kRowThreads / 32];
  const int64_t row = blockIdx.x;
  const int vectors = static_cast<int>(a.n / kVector);
  auto* x = reinterpret_cast<Vector*>(a.x + row * a.n);
  float values[kVectors][kVector];
  Vector weights[kVectors];  // asked for before the wait for the sum
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int at = i * kRowThreads + static_cast<int>(threadIdx.x);
    if (at >= vectors) break;
    weights[i] = reinterpret_cast<const Vector*>(a.weight)[at];
    Widen(x[at], values[i]);
    if (a.y != nullptr) {
      float added[kVector];
      Widen(reinterpret_cast<const Vector*>(a.y + row * a.n)[at], added);
#pragma unroll
      for (int e = 0; e < kVector; ++e) added[e] = __fadd_rn(values[i][e], added[e]);
      const Vector sum = Narrow(added);
      x[at] = sum;
      Widen(sum, values[i]);  // what the next reader of x will see
    }
#pragma unroll
    for (int e = 0; e < kVector; ++e) squares = __fmaf_rn(values[i][e], values[i][e], squares);
  }
  squares = WarpSum(squares);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = squares;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (const float sum : warp_sums) total = __fadd_rn(total, sum);
  const float factor = __frsqrt_rn(__fadd_rn(__fdiv_rn(total, static_cast<float>(a.n)), a.epsilon));
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int at = i * kRowThreads + static_cast<int>(threadIdx.x);
    if (at >= vectors) break;
    float weight[kVector];
    Widen(weights[i], weight);
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      weight[e] = __fmul_rn(__fmul_rn(values[i][e], factor), weight[e]);
    }
    reinterpret_cast<Vector*>(a.out + row * a.n)[at] = Narrow(weight);
  }
}

// ---- rotary embedding

__global__ void __launch_bounds__(kRowThreads) RopeTableKernel(const RopeTableArgs a) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (at >= a.positions * a.half) return;
  const float angle =
      __fmul_rn(static_cast<float>(at / a.half), a.inverse_frequencies[at % a.half]);
  a.table[at] = make_float2(static_cast<float>(cos(static_cast<double>(angle))),
                            static_cast<float>(sin(static_cast<double>(angle))));
}

// RMS norm of a head that kLanes neighbouring lanes hold.
template <int kLanes>
__device__ __forceinline__ void NormHead(const __nv_bfloat16* weight, int lane, float epsilon,
                                         float (&low)[kVector], float (&high)[kVector]) {
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    squares = __fmaf_rn(low[i], low[i], __fmaf_rn(high[i], high[i], squares));
  }
  const uint32_t group = ((1u << kLanes) - 1) << (threadIdx.x % 32 / kLanes * kLanes);
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    squares = __fadd_rn(squares, __shfl_xor_sync(group, squares, step));
  }
  const float mean = __fdiv_rn(squares, static_cast<float>(2 * kVector * kLanes));
  const float factor = __frsqrt_rn(__fadd_rn(mean, epsilon));
  float first[kVector], second[kVector];
  Widen(reinterpret_cast<const Vector*>(weight)[lane], first);
  Widen(reinterpret_cast<const Vector*>(weight)[kLanes + lane], second);
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    low[i] = __fmul_rn(__fmul_rn(low[i], factor), first[i]);
    high[i] = __fmul_rn(__fmul_rn(high[i], factor), second[i]);
  }
}

// A block has a row. kHeadDim / 16 lanes have a head: each eight neighbours of the first half, and
// the eight values they turn with, half a head further.
template <int kHeadDim>
__global__ void __launch_bounds__(kRowThreads) RopeAndStoreKernel(const RopeAndStoreArgs a) {
  constexpr int kHalf = kHeadDim / 2, kLanes = kHalf / kVector;
  const int row = static_cast<int>(blockIdx.x);
  const int heads = a.heads + 2 * a.kv_heads;
  const int position = a.positions[row];
  const float2* table = a.table + static_cast<int64_t>(position) * kHalf;
  std::byte* const page = a.pages[row / a.num_tokens * a.pages_stride + position / a.block_tokens];
  for (int at = static_cast<int>(threadIdx.x); at < heads * kLanes; at += kRowThreads) {
    const int head = at / kLanes, lane = at % kLanes;
    __nv_bfloat16* const x = a.qkv + (static_cast<int64_t>(row) * heads + head) * kHeadDim;
    float low[kVector], high[kVector];
    Widen(reinterpret_cast<const Vector*>(x)[lane], low);
    Widen(reinterpret_cast<const Vector*>(x + kHalf)[lane], high);
    if (head < a.heads + a.kv_heads) {
      const __nv_bfloat16* norm = head < a.heads ? a.q_norm : a.k_norm;
      if (norm != nullptr) NormHead<kLanes>(norm, lane, a.norm_epsilon, low, high);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const float2 turn = table[lane * kVector + i];
        const float turned = __fmaf_rn(low[i], turn.x, -__fmul_rn(high[i], turn.y));
        high[i] = __fmaf_rn(high[i], turn.x, __fmul_rn(low[i], turn.y));
        low[i] = turned;
      }
    }
    __nv_bfloat16* to = x;
    if (head >= a.heads) {
      const bool is_value = head >= a.heads + a.kv_heads;
      const int kv_head = head - a.heads - (is_value ? a.kv_heads : 0);
      to = reinterpret_cast<__nv_bfloat16*>(page + (is_value ? a.v_offset : a.k_offset)) +
           (static_cast<int64_t>(kv_head) * a.block_tokens + position % a.block_tokens) * kHeadDim;
    }
    reinterpret_cast<Vector*>(to)[lane] = Narrow(low);
    reinterpret_cast<Vector*>(to + kHalf)[lane] = Narrow(high);
  }
}

// ---- activation

__global__ void __launch_bounds__(kRowThreads) SwigluKernel(const SwigluArgs a) {
  const int64_t vectors = a.n / kVector, row = blockIdx.x;
  const int64_t at = static_cast<int64_t>(blockIdx.y) * kRowThreads + threadIdx.x;
  if (at >= vectors) return;
  const auto* from = reinterpret_cast<const Vector*>(a.gate_up) + row * 2 * vectors;
  float gate[kVector], up[kVector];
  Widen(from[at], gate);
  Widen(from[vectors + at], up);
#pragma unroll
  for (int e = 0; e < kVector; ++e) {
    const float silu = __fdividef(gate[e], __fadd_rn(1.0f, __expf(-gate[e])));
    gate[e] = __fmul_rn(silu, up[e]);
  }
  reinterpret_cast<Vector*>(a.out)[row * vectors + at] = Narrow(gate);
}

// ---- arg max: a block has a row

struct Best {
  float logit = -INFINITY;
  int64_t index = -1;  // none
};

__device__ __forceinline__ Best Better(const Best& a, const Best& b) {
  if (a.index < 0 || b.index < 0) return a.index < 0 ? b : a;
  if (a.logit != b.logit) return a.logit > b.logit ? a : b;
  return a.index < b.index ? a : b;
}

constexpr int kArgMaxThreads = 1024;

__global__ void __launch_bounds__(kArgMaxThreads) ArgMaxKernel(const ArgMaxArgs a) {
  __shared__ Best warp_best[kArgMaxThreads / 32];
  const float* logits = a.logits + static_cast<int64_t>(blockIdx.x) * a.n;
  Best best;
  for (int64_t i = threadIdx.x; i < a.n; i += kArgMaxThreads) {
    const float logit = logits[i];
    if (!isnan(logit)) best = Better(best, {logit, i});
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    best = Better(best,
                  {__shfl_xor_sync(~0u, best.logit, step), __shfl_xor_sync(~0u, best.index, step)});
  }
  if (threadIdx.x % 32 == 0) warp_best[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kArgMaxThreads / 32; ++i) best = Better(best, warp_best[i]);
  a.tokens[blockIdx.x] = best.index < 0 ? 0 : static_cast<uint32_t>(best.index);
}

bool FitsGrid(int64_t blocks) { return blocks > 0 && blocks < int64_t{1} << 31; }
bool IsVectorised(int64_t n) { return n > 0 && n % kVector == 0; }

}  // namespace

cudaError_t LaunchEmbed(const EmbedArgs& args, cudaStream_t stream) {
  const int64_t items = args.rows * args.n / kVector;
  if (!IsVectorised(args.n) || !FitsGrid(items)) return cudaErrorInvalidValue;
  EmbedKernel<<<BlocksFor(items), kRowThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t LaunchNorm(const NormArgs& args, cudaStream_t stream) {
  if (!IsVectorised(args.n) || args.n > kNormWidthMax || !FitsGrid(args.rows)) {
    return cudaErrorInvalidValue;
  }
  const auto rows = static_cast<unsigned>(args.rows);
  const int64_t vectors = (args.n / kVector + kRowThreads - 1) / kRowThreads;
  if (vectors <= 1) {
    NormKernel<1><<<rows, kRowThreads, 0, stream>>>(args);
  } else if (vectors <= 2) {
    NormKernel<2><<<rows, kRowThreads, 0, stream>>>(args);
  } else if (vectors <= 4) {
    NormKernel<4><<<rows, kRowThreads, 0, stream>>>(args);
  } else {
    NormKernel<8><<<rows, kRowThreads, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

cudaError_t LaunchRopeTable(const RopeTableArgs& args, cudaStream_t stream) {
  const int64_t items = args.positions * args.half;
  if (args.half <= 0 || !FitsGrid(items)) return cudaErrorInvalidValue;
  RopeTableKernel<<<BlocksFor(items), kRowThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t LaunchRopeAndStore(const RopeAndStoreArgs& args, cudaStream_t stream) {
  if ((args.head_dim != 64 && args.head_dim != 128) || args.heads < 1 || args.kv_heads < 1 ||
      args.num_tokens < 1 || args.rows % args.num_tokens != 0 || args.block_tokens < 1 ||
      (args.q_norm == nullptr) != (args.k_norm == nullptr) || !FitsGrid(args.rows)) {
    return cudaErrorInvalidValue;
  }
  const auto blocks = static_cast<unsigned>(args.rows);
  if (args.head_dim == 64) {
    RopeAndStoreKernel<64><<<blocks, kRowThreads, 0, stream>>>(args);
  } else {
    RopeAndStoreKernel<128><<<blocks, kRowThreads, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

cudaError_t LaunchSwiglu(const SwigluArgs& args, cudaStream_t stream) {
  const int blocks_a_row = BlocksFor(args.n / kVector);
  if (!IsVectorised(args.n) || !FitsGrid(args.rows) || blocks_a_row > 65535) {
    return cudaErrorInvalidValue;
  }
  const dim3 grid(static_cast<unsigned>(args.rows), static_cast<unsigned>(blocks_a_row));
  SwigluKernel<<<grid, kRowThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t LaunchArgMax(const ArgMaxArgs& args, cudaStream_t stream) {
  if (args.n < 1 || args.n >= int64_t{1} << 31 || !FitsGrid(args.rows)) {
    return cudaErrorInvalidValue;
  }
  ArgMaxKernel<<<static_cast<unsigned>(args.rows), kArgMaxThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace kvstore::kernels::cuda
