// XXH3-64 of many slices in device memory at once: the bits of kernels/page_checksum.h.
//
// A warp takes a slice. Within a block of 1 KiB all stripes are independent, so its 32 lanes sum
// them in parallel; only the scramble between blocks is a chain, of about 30 cycles a KiB. A single
// warp is slow (tens of GB/s); a page has dozens of slices, and four thread blocks outrun PCIe.
//
// Neither allocates nor synchronises. Includes nothing of ours. Measured figures:
// docs/performance.md.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

namespace kvstore::kernels {

// Shorter slices are another function of XXH3; the launcher refuses them.
inline constexpr uint32_t kCudaChecksumBytesMin = 241;

// One slice. Device-accessible memory; `data` of any alignment (16-byte aligned is fast).
struct CudaChecksumTask {
  const void* data;
  uint64_t seed;
};

// checksums[i] = XXH3-64 of `slice_bytes` bytes at tasks[i].data with tasks[i].seed.
// `tasks` and `checksums` are device-accessible, [num_tasks]; the work is done on at most
// `blocks_max` thread blocks of 256.
// Errors: cudaErrorInvalidValue, slice_bytes below kCudaChecksumBytesMin, or blocks_max is 0.
cudaError_t LaunchCudaChecksums(const CudaChecksumTask* tasks, uint64_t* checksums,
                                uint32_t num_tasks, uint32_t slice_bytes, uint32_t blocks_max,
                                cudaStream_t stream);

}  // namespace kvstore::kernels
