// Where the variants hand their tables to cpu_kernels.cc. Each is built with its own compiler
// flags, so nothing but plain data may cross: no inline function of a shared header may be
// instantiated in a variant.
#pragma once

#include "kernels/cpu_kernels.h"

namespace kvstore::kernels {

extern const CpuKernels kScalarKernels;
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kAvx512Kernels;

}  // namespace kvstore::kernels
