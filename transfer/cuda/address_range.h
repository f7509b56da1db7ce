// AddressRange is one stretch of a device's address space, in which DeviceMemory is mapped: memory
// of this process and of others at addresses that one description covers (the attention kernel
// reaches all pages of all slabs through one). Address space costs nothing until it is mapped.
//
// Thread-safe. Shared by the memory in it, which may end in any order.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "transfer/cuda/cuda_context.h"

namespace kvstore::transfer {

class AddressRange {
 public:
  // `bytes` is a multiple of context->granularity(). Errors: ResourceExhausted, no such stretch;
  // InvalidArgument; Unavailable, the device has failed.
  static absl::StatusOr<std::shared_ptr<AddressRange>> Reserve(std::shared_ptr<CudaContext> context,
                                                               uint64_t bytes);
  ~AddressRange();
  AddressRange(const AddressRange&) = delete;
  AddressRange& operator=(const AddressRange&) = delete;

  CUdeviceptr data() const { return address_; }
  uint64_t bytes() const { return bytes_; }

  // The first free stretch of `bytes`, a multiple of the granularity. Errors: ResourceExhausted.
  absl::StatusOr<CUdeviceptr> Take(uint64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // What Take() returned.
  void Give(CUdeviceptr address) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  AddressRange(std::shared_ptr<CudaContext> context, CUdeviceptr address, uint64_t bytes)
      : context_(std::move(context)), address_(address), bytes_(bytes) {}

  const std::shared_ptr<CudaContext> context_;
  const CUdeviceptr address_;
  const uint64_t bytes_;
  absl::Mutex mutex_;
  std::map<CUdeviceptr, uint64_t> taken_ ABSL_GUARDED_BY(mutex_);  // address -> bytes
};

}  // namespace kvstore::transfer
