// The kernels for one instruction set; compiled with its own flags (kernels/CMakeLists.txt).
#include "kernels/isa/vec16_avx512.h"

#include "kernels/isa/attention_impl.h"
#include "kernels/isa/experts_impl.h"
#include "kernels/isa/gemm_impl.h"
#include "kernels/isa/rows_impl.h"
#include "kernels/isa/tables.h"

namespace kvstore::kernels {

const CpuKernels kAvx512Kernels = {CpuIsa::kAvx512, "avx512", Gemm,  Attention, Norm,  Rope,
                                   StoreKv,         Swiglu,   Route, Combine,   AddTo, WidenBf16Row,
                                   NarrowBf16,      Exp2Array};

}  // namespace kvstore::kernels
