// The CPU kernels of the engine, one table of functions per instruction set. All tables give
// identical bits.
//
// Pure functions of their arguments: no allocation, no threads, no global state; callers split work
// over threads by giving disjoint blocks or row ranges. Preconditions are the caller's duty and are
// stated with the arguments.
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/experts.h"
#include "kernels/gemm.h"
#include "kernels/rows.h"

namespace kvstore::kernels {

enum class CpuIsa : uint8_t { kScalar, kAvx2, kAvx512 };

struct CpuKernels {
  CpuIsa isa;
  const char* name;  // "scalar", "avx2", "avx512"
  void (*gemm)(const GemmArgs&, const GemmBlock&, float* scratch);
  void (*attention)(const AttentionArgs&, const AttentionBlock&, float* scratch);
  void (*norm)(const NormArgs&, int64_t row_begin, int64_t row_end);
  void (*rope)(const RopeArgs&, int64_t row_begin, int64_t row_end);
  void (*store_kv)(const KvStoreArgs&, int64_t row_begin, int64_t row_end);
  void (*swiglu)(const SwigluArgs&, int64_t row_begin, int64_t row_end);
  void (*route)(const RouteArgs&, int64_t row_begin, int64_t row_end);
  void (*combine)(const CombineArgs&, int64_t row_begin, int64_t row_end);
  void (*add)(float* x, const float* y, int64_t n);               // x += y
  void (*widen_bf16)(const uint16_t* x, float* out, int64_t n);   // exact
  void (*narrow_bf16)(const float* x, uint16_t* out, int64_t n);  // to nearest even
  void (*exp2)(const float* x, float* out, int64_t n);  // the exponential of softmax, for tests
};

// The table of `isa`, or null when this CPU or operating system cannot run it.
const CpuKernels* KernelsFor(CpuIsa isa);

// The widest table that this CPU can run.
const CpuKernels& BestKernels();

}  // namespace kvstore::kernels
