// ChecksumBatch takes the checksums of many slices on a device, a run of them at a time.
//
// Threads: externally synchronised. The stream must have passed before results are read, before a
// task is set again, and before the batch goes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "transfer/cuda/cuda_driver.h"

namespace kvstore::engine {

class ChecksumBatch {
 public:
  virtual ~ChecksumBatch() = default;

  // The slice at `data` on the device; its checksum is XXH3-64 with `seed`.
  virtual void Set(size_t task, CUdeviceptr data, uint64_t seed) = 0;
  // Enqueues tasks [first, first + count), for at most `blocks_max` thread blocks at once.
  virtual absl::Status Launch(size_t first, size_t count, uint32_t blocks_max, CUstream stream) = 0;
  virtual uint64_t result(size_t task) const = 0;
};

// Makes a batch of `num_tasks` tasks, of slices of `slice_bytes`. Thread-safe.
// Errors: ResourceExhausted.
using MakeChecksumBatch = std::function<absl::StatusOr<std::unique_ptr<ChecksumBatch>>(
    size_t num_tasks, uint32_t slice_bytes)>;

// By the kernel of kernels/cuda/page_checksum.h, in the context that is current. Tasks and results
// lie in page-locked host memory, kept for the next batch, which the kernel reaches directly:
// nothing has to queue behind the pages on the way to or from the device.
MakeChecksumBatch MakeKernelChecksums();

}  // namespace kvstore::engine
