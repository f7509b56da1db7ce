// DeviceMemory is device memory that processes share: made in one, and handed to others as a file
// descriptor. The memory exists for as long as anybody has it mapped or holds a descriptor of it:
// what an importer still maps is never given to somebody else.
//
// A descriptor gives its holder all rights to the memory: an importer that asks for read-only access
// protects itself against its own stray writes, not others against it.
//
// Thread-safe; made and destroyed on any thread.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kvstore/base/unique_fd.h"
#include "transfer/cuda/address_range.h"
#include "transfer/cuda/cuda_context.h"

namespace kvstore::transfer {

class DeviceMemory {
 public:
  // New memory, zeroed: nothing of what it held before can be read. `bytes` is a multiple of
  // context->granularity(). `range`: where its address lies; null: anywhere. Errors: ResourceExhausted, with what is free; InvalidArgument;
  // Unavailable, the device has failed.
  static absl::StatusOr<std::unique_ptr<DeviceMemory>> Create(
      std::shared_ptr<CudaContext> context, uint64_t bytes,
      std::shared_ptr<AddressRange> range = nullptr);
  // Memory of another process. `bytes`: what its owner says. Errors: DataLoss, the descriptor is no
  // device memory of this device, or not of that size; ResourceExhausted.
  static absl::StatusOr<std::unique_ptr<DeviceMemory>> Import(
      std::shared_ptr<CudaContext> context, const UniqueFd& fd, uint64_t bytes, DeviceAccess access,
      std::shared_ptr<AddressRange> range = nullptr);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  CUdeviceptr data() const { return address_; }
  uint64_t bytes() const { return bytes_; }
  // A new descriptor. Errors: Unavailable, out of descriptors or the device has failed.
  absl::StatusOr<UniqueFd> Export() const;

 private:
  DeviceMemory(std::shared_ptr<CudaContext> context, uint64_t bytes,
               std::shared_ptr<AddressRange> range)
      : context_(std::move(context)), range_(std::move(range)), bytes_(bytes) {}
  CUresult FindAddress();
  CUresult MapIt(DeviceAccess access);

  const std::shared_ptr<CudaContext> context_;
  const std::shared_ptr<AddressRange> range_;  // null: an address of its own
  const uint64_t bytes_;
  CUmemGenericAllocationHandle handle_ = 0;
  bool has_handle_ = false;
  bool is_mapped_ = false;
  CUdeviceptr address_ = 0;
};

}  // namespace kvstore::transfer
