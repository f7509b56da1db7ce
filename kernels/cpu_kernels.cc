#include "kernels/cpu_kernels.h"

#include "kernels/isa/tables.h"

namespace kvstore::kernels {
namespace {

// __builtin_cpu_supports also asks the operating system (XGETBV) whether it saves the wide
// registers.
bool CanRun(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kScalar:
      return true;
    case CpuIsa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case CpuIsa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }
  return false;
}

}  // namespace

const CpuKernels* KernelsFor(CpuIsa isa) {
  if (!CanRun(isa)) return nullptr;
  switch (isa) {
    case CpuIsa::kScalar:
      return &kScalarKernels;
    case CpuIsa::kAvx2:
      return &kAvx2Kernels;
    case CpuIsa::kAvx512:
      return &kAvx512Kernels;
  }
  return nullptr;
}

const CpuKernels& BestKernels() {
  if (const CpuKernels* kernels = KernelsFor(CpuIsa::kAvx512)) return *kernels;
  if (const CpuKernels* kernels = KernelsFor(CpuIsa::kAvx2)) return *kernels;
  return kScalarKernels;
}

}  // namespace kvstore::kernels
