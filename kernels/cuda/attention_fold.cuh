// The running softmax of a row and how segments of it are folded: the same roundings in the block
// that computed both sides and in the launch that folds what many blocks left. Only for
// attention_sm90.cu.
#pragma once

#include <cuda_bf16.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace kvstore::kernels::cuda::attention_sm90 {

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

}  // namespace kvstore::kernels::cuda::attention_sm90
