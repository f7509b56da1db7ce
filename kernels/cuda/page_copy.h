// Gathers and scatters fragments between host and device memory, for fragments that are too small
// for the copy engines (below 64 KiB): a few thread blocks drive the link and leave the rest of the
// device to the engine.
//
// Neither allocates nor synchronises. Includes nothing of ours. Measured figures:
// docs/performance.md.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

namespace kvstore::kernels {

// P6: what page movement may take of the device.
inline constexpr uint32_t kCudaCopyBlocksMax = 4;

// One fragment. `dst`, `src` and `bytes` are multiples of 16; either side is device memory or
// registered host memory; fragments do not overlap.
struct CudaCopyTask {
  void* dst;
  const void* src;
  uint64_t bytes;
};

// Copies tasks[0..num_tasks) on `num_blocks` thread blocks. `tasks` is device-accessible and stays
// until the stream has passed. Errors: cudaErrorInvalidValue, num_blocks is 0 or above
// kCudaCopyBlocksMax.
cudaError_t LaunchCudaCopies(const CudaCopyTask* tasks, uint32_t num_tasks, uint32_t num_blocks,
                             cudaStream_t stream);

}  // namespace kvstore::kernels
