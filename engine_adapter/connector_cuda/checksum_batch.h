// ChecksumBatch takes the checksums of many slices on the device, a run of them at a time. Tasks and
// results lie in page-locked host memory, which the kernel reaches directly: nothing has to queue
// behind the pages on the way to or from the device.
//
// Threads: externally synchronised. The stream must have passed before results are read, before a
// task is set again, and before the memory goes.
#pragma once

#include <absl/status/status.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "engine_adapter/llama_cuda/device_memory.h"
#include "kernels/cuda/page_checksum.h"

namespace kvstore::engine {

class ChecksumBatch {
 public:
  static size_t BytesOf(size_t num_tasks) {
    return num_tasks * (sizeof(kernels::CudaChecksumTask) + sizeof(uint64_t));
  }
  // `memory` has room for BytesOf(num_tasks), and outlives this.
  ChecksumBatch(const PinnedMemory& memory, size_t num_tasks, uint32_t slice_bytes)
      : tasks_(memory.data<kernels::CudaChecksumTask>()),
        checksums_(reinterpret_cast<uint64_t*>(tasks_ + num_tasks)),
        slice_bytes_(slice_bytes) {}

  void Set(size_t task, const std::byte* slice, uint64_t seed) { tasks_[task] = {slice, seed}; }
  // Tasks [first, first + count), on at most `blocks_max` thread blocks.
  absl::Status Launch(size_t first, size_t count, uint32_t blocks_max, cudaStream_t stream);
  uint64_t result(size_t task) const { return checksums_[task]; }

 private:
  kernels::CudaChecksumTask* tasks_;
  uint64_t* checksums_;
  uint32_t slice_bytes_;
};

}  // namespace kvstore::engine
