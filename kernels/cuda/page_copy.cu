// A warp takes a fragment and moves it in rounds of 4 KiB: each thread has eight loads of 16 bytes
// in flight before its first store.
//
//   fragment = rounds of [8][32] vectors of 16 bytes; vector i of thread t lies at 32 * i + t
#include "kernels/cuda/page_copy.h"

namespace kvstore::kernels {
namespace {

constexpr uint32_t kWarpThreads = 32;
constexpr uint32_t kBlockThreads = 1024;
constexpr uint32_t kWarps = kBlockThreads / kWarpThreads;
constexpr int kLoadsInFlight = 8;

__device__ void WarpCopy(const CudaCopyTask& task, uint32_t thread) {
  const uint4* src = static_cast<const uint4*>(task.src);
  uint4* dst = static_cast<uint4*>(task.dst);
  const uint64_t num_vectors = task.bytes / sizeof(uint4);
  uint64_t at = thread;
  for (; at + (kLoadsInFlight - 1) * kWarpThreads < num_vectors;
       at += kLoadsInFlight * kWarpThreads) {
    uint4 values[kLoadsInFlight];
#pragma unroll
    for (int i = 0; i < kLoadsInFlight; ++i) values[i] = __ldcs(src + at + i * kWarpThreads);
#pragma unroll
    for (int i = 0; i < kLoadsInFlight; ++i) __stcs(dst + at + i * kWarpThreads, values[i]);
  }
  for (; at < num_vectors; at += kWarpThreads) __stcs(dst + at, __ldcs(src + at));
}

__global__ void __launch_bounds__(kBlockThreads)
    CopyKernel(const CudaCopyTask* tasks, uint32_t num_tasks) {
  const uint32_t stride = gridDim.x * kWarps;
  uint32_t i = blockIdx.x * kWarps + threadIdx.x / kWarpThreads;
  if (i >= num_tasks) return;
  // The descriptors may lie behind the link, too: the next one is fetched under this one's bytes.
  CudaCopyTask next = tasks[i];
  while (i < num_tasks) {
    const CudaCopyTask task = next;
    i += stride;
    if (i < num_tasks) next = tasks[i];
    WarpCopy(task, threadIdx.x % kWarpThreads);
  }
}

}  // namespace

cudaError_t LaunchCudaCopies(const CudaCopyTask* tasks, uint32_t num_tasks, uint32_t num_blocks,
                             cudaStream_t stream) {
  if (num_blocks == 0 || num_blocks > kCudaCopyBlocksMax) return cudaErrorInvalidValue;
  if (num_tasks == 0) return cudaSuccess;
  CopyKernel<<<num_blocks, kBlockThreads, 0, stream>>>(tasks, num_tasks);
  return cudaGetLastError();
}

}  // namespace kvstore::kernels
