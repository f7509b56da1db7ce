// What the kernels for compute capability 9.0 use of the machine by hand: tensor copies, barriers in
// shared memory, warpgroup matrix products. Thin names for single PTX instructions.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace kvstore::kernels::cuda::hopper {

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- barriers in shared memory

__device__ __forceinline__ void BarrierInit(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void BarrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void BarrierExpect(uint32_t barrier, uint32_t num_bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
               "r"(num_bytes)
               : "memory");
}
__device__ __forceinline__ void BarrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void BarrierWait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// ---- named barriers of a block

__device__ __forceinline__ void NamedSync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- tensor copies

__device__ __forceinline__ void PrefetchMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// One box whose corner is (column, row), to shared memory; completes on `barrier`.
__device__ __forceinline__ void CopyBox(uint32_t to, const CUtensorMap* map, int column, int row,
                                        uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
// Orders this thread's plain stores to shared memory before later reads by tensor cores and copies.
__device__ __forceinline__ void FenceAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- registers of a warpgroup

template <int kRegisters>
__device__ __forceinline__ void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- warpgroup matrix products

__device__ __forceinline__ void ProductFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void ProductCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kPending groups of products are still running.
template <int kPending>
__device__ __forceinline__ void ProductWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of these registers across a fence or a wait.
template <int kCount>
__device__ __forceinline__ void Pin(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

// Descriptor of an operand in shared memory, rows of 128 bytes with the 128-byte swizzle. Strides in
// bytes: `group_stride` between groups of eight rows; `column_stride` between columns of 64 elements,
// used only where the contiguous direction is not the summed one.
__device__ __forceinline__ uint64_t Operand(uint32_t address, uint32_t column_stride,
                                            uint32_t group_stride) {
  return static_cast<uint64_t>((address & 0x3ffffu) >> 4) |
         static_cast<uint64_t>(column_stride >> 4) << 16 |
         static_cast<uint64_t>(group_stride >> 4) << 32 | uint64_t{1} << 62;
}

#define KVSTORE_D8(d, i)                                                                      \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define KVSTORE_D32(d, i) \
  KVSTORE_D8(d, i), KVSTORE_D8(d, i + 8), KVSTORE_D8(d, i + 16), KVSTORE_D8(d, i + 24)
#define KVSTORE_REGS32                                                 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18," \
  "%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define KVSTORE_REGS64                                                    \
  KVSTORE_REGS32                                                          \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48," \
  "%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// d[64 x 128] = a[64 x 16] b[128 x 16]^T (+ d where `adds`); both operands in shared memory, the
// summed direction contiguous.
__device__ __forceinline__ void Product(float (&d)[64], uint64_t a, uint64_t b, int adds) {
  asm volatile(
      "{\n"
      ".reg .pred adds;\n"
      "setp.ne.b32 adds, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" KVSTORE_REGS64
      "}, %64, %65, adds, 1, 1, 0, 0;\n"
      "}\n"
      : KVSTORE_D32(d, 0), KVSTORE_D32(d, 32)
      : "l"(a), "l"(b), "r"(adds));
}

// d[64 x 128] = a[64 x 16] b[16 x 128] (+ d): a in registers, b in shared memory with the columns of
// the result contiguous.
__device__ __forceinline__ void ProductTransposed(float (&d)[64], const uint32_t* a, uint64_t b,
                                                  int adds) {
  asm volatile(
      "{\n"
      ".reg .pred adds;\n"
      "setp.ne.b32 adds, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" KVSTORE_REGS64
      "}, {%64,%65,%66,%67}, %68, adds, 1, 1, 1;\n"
      "}\n"
      : KVSTORE_D32(d, 0), KVSTORE_D32(d, 32)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));
}

// The same for 64 columns.
__device__ __forceinline__ void ProductTransposed(float (&d)[32], const uint32_t* a, uint64_t b,
                                                  int adds) {
  asm volatile(
      "{\n"
      ".reg .pred adds;\n"
      "setp.ne.b32 adds, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" KVSTORE_REGS32
      "}, {%32,%33,%34,%35}, %36, adds, 1, 1, 1;\n"
      "}\n"
      : KVSTORE_D32(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));
}

#undef KVSTORE_D8
#undef KVSTORE_D32
#undef KVSTORE_REGS32
#undef KVSTORE_REGS64

}  // namespace kvstore::kernels::cuda::hopper
