// Router, grouping and sum of a mixture of experts. Contract: experts.h.
#include <cmath>

#include "kernels/cuda/experts.h"

namespace kvstore::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kVector = 8;  // bf16 values of 16 bytes

int BlocksFor(int64_t items) { return static_cast<int>((items + kThreads - 1) / kThreads); }

// ---- route: a warp has a row; expert i is lane i mod 32's

struct Candidate {
  float logit;
  int expert;  // num_experts: none
};

__device__ __forceinline__ float Comparable(float logit) {
  return isnan(logit) ? -INFINITY : logit;
}
// Whether `a` comes before `b`: the larger logit, of equal ones the lower number.
__device__ __forceinline__ bool IsBefore(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.expert < b.expert);
}

// The expert that follows `last`, the same in every lane.
__device__ __forceinline__ Candidate NextExpert(const float* logits, int num_experts, int lane,
                                                const Candidate& last) {
  Candidate best{-INFINITY, num_experts};
  for (int i = lane; i < num_experts; i += 32) {
    const Candidate candidate{Comparable(logits[i]), i};
    if (IsBefore(last, candidate) && IsBefore(candidate, best)) best = candidate;
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const Candidate other{__shfl_xor_sync(~0u, best.logit, step),
                          __shfl_xor_sync(~0u, best.expert, step)};
    if (IsBefore(other, best)) best = other;
  }
  return best;
}

__global__ void __launch_bounds__(kThreads) RouteKernel(const RouteArgs a) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= a.rows) return;  // a whole warp
  const int lane = static_cast<int>(threadIdx.x % 32);
  const auto num_experts = static_cast<int>(a.num_experts), top_k = static_cast<int>(a.top_k);
  const float* logits = a.logits + row * a.num_experts;
  Candidate last{INFINITY, -1}, first{}, mine{};
  for (int k = 0; k < top_k; ++k) {
    last = NextExpert(logits, num_experts, lane, last);
    if (k == 0) first = last;
    if (k == lane) mine = last;
  }
  float total = 0.0f;
  for (int i = lane; i < num_experts; i += 32) {
    total = __fadd_rn(total, expf(__fsub_rn(logits[i], first.logit)));
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    total = __fadd_rn(total, __shfl_xor_sync(~0u, total, step));
  }
  const bool is_chosen = lane < top_k;
  float weight =
      is_chosen ? __fdiv_rn(expf(__fsub_rn(logits[mine.expert], first.logit)), total) : 0.0f;
  int rank = 0;  // by number
  float chosen = 0.0f;
  for (int k = 0; k < top_k; ++k) {
    const int other = __shfl_sync(~0u, mine.expert, k);
    rank += other < mine.expert ? 1 : 0;
    chosen = __fadd_rn(chosen, __shfl_sync(~0u, weight, k));
  }
  if (!is_chosen) return;
  if (a.is_normalized) weight = __fdiv_rn(weight, chosen);
  a.experts[row * top_k + rank] = mine.expert;
  a.weights[row * top_k + rank] = __fmul_rn(weight, a.scale);
}

// ---- group: a block has an expert and goes over all choices in their order

// Choices of this block's expert among those before thread 0's, and up to and with this thread's.
struct Rank {
  int before;
  int total;
};
__device__ __forceinline__ Rank RankOf(bool is_mine, int* warp_counts) {
  const unsigned mask = __ballot_sync(~0u, is_mine);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  if (lane == 0) warp_counts[warp] = __popc(mask);
  __syncthreads();
  Rank rank{__popc(mask & ((1u << lane) - 1)), 0};
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    if (i < warp) rank.before += warp_counts[i];
    rank.total += warp_counts[i];
  }
  __syncthreads();
  return rank;
}

__global__ void __launch_bounds__(kThreads) CountKernel(const GroupArgs a) {
  __shared__ int warp_counts[kWarps];
  const int64_t choices = a.rows * a.top_k;
  const auto expert = static_cast<int>(blockIdx.x);
  int count = 0;
  for (int64_t begin = 0; begin < choices; begin += kThreads) {
    const int64_t i = begin + threadIdx.x;
    count += RankOf(i < choices && a.experts[i] == expert, warp_counts).total;
  }
  if (threadIdx.x == 0) a.begins[expert + 1] = count;
}

// Counts become begins. One thread: a thousand additions at most.
__global__ void BeginsKernel(const GroupArgs a) {
  int sum = 0;
  a.begins[0] = 0;
  for (int64_t i = 1; i <= a.num_experts; ++i) a.begins[i] = sum += a.begins[i];
}

__global__ void __launch_bounds__(kThreads) PlaceKernel(const GroupArgs a) {
  __shared__ int warp_counts[kWarps];
  const int64_t choices = a.rows * a.top_k;
  const auto expert = static_cast<int>(blockIdx.x);
  int next = a.begins[expert];
  for (int64_t begin = 0; begin < choices; begin += kThreads) {
    const int64_t i = begin + threadIdx.x;
    const bool is_mine = i < choices && a.experts[i] == expert;
    const Rank rank = RankOf(is_mine, warp_counts);
    if (is_mine) {
      const int slot = next + rank.before;
      a.slots[i] = slot;
      a.sources[slot] = static_cast<uint32_t>(i / a.top_k);
    }
    next += rank.total;
  }
}

// ---- combine: a thread has eight columns of a row

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

__global__ void __launch_bounds__(kThreads) CombineKernel(const CombineArgs a) {
  const int64_t vectors = a.n / kVector;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= a.rows * vectors) return;
  const int64_t row = at / vectors, column = at % vectors;
  float sum[kVector] = {}, given[kVector];
  for (int64_t k = 0; k < a.top_k; ++k) {
    const float weight = a.weights[row * a.top_k + k];
    Widen(reinterpret_cast<const Vector*>(a.x + a.slots[row * a.top_k + k] * a.n)[column], given);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum[i] = __fmaf_rn(weight, given[i], sum[i]);
  }
  if (a.shared != nullptr) {
    Widen(reinterpret_cast<const Vector*>(a.shared)[at], given);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum[i] = __fadd_rn(sum[i], given[i]);
  }
  Vector out;
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) {
    out.pair[i] = __floats2bfloat162_rn(sum[2 * i], sum[2 * i + 1]);
  }
  reinterpret_cast<Vector*>(a.out)[at] = out;
}

}  // namespace

cudaError_t LaunchRoute(const RouteArgs& args, cudaStream_t stream) {
  if (args.rows < 1 || args.num_experts < 1 || args.num_experts > kExpertsMax || args.top_k < 1 ||
      args.top_k > args.num_experts || args.top_k > kTopKMax) {
    return cudaErrorInvalidValue;
  }
  const auto blocks = static_cast<unsigned>((args.rows + kWarps - 1) / kWarps);
  RouteKernel<<<blocks, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t LaunchGroup(const GroupArgs& args, cudaStream_t stream) {
  if (args.rows < 1 || args.top_k < 1 || args.num_experts < 1 || args.num_experts > kExpertsMax ||
      args.rows > INT32_MAX / args.top_k) {
    return cudaErrorInvalidValue;
  }
  const auto blocks = static_cast<unsigned>(args.num_experts);
  CountKernel<<<blocks, kThreads, 0, stream>>>(args);
  BeginsKernel<<<1, 1, 0, stream>>>(args);
  PlaceKernel<<<blocks, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t LaunchCombine(const CombineArgs& args, cudaStream_t stream) {
  if (args.rows < 1 || args.top_k < 1 || args.n < kVector || args.n % kVector != 0) {
    return cudaErrorInvalidValue;
  }
  CombineKernel<<<BlocksFor(args.rows * (args.n / kVector)), kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace kvstore::kernels::cuda
