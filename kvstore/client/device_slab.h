// Slabs that lie in the memory of a GPU, for clients that can reach one: what imports them is given
// in ClientOptions, so that clients without CUDA do not link it (cuda_slabs.h has the one for CUDA).
//
// Thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/memory_socket.h"
#include "kvstore/base/unique_fd.h"

namespace kvstore::client {

// One slab, mapped into the device's address space until it is destroyed.
class DeviceSlab {
 public:
  virtual ~DeviceSlab() = default;
  // In the device's address space: for kernels, which use pages where they are.
  virtual uint64_t address() const = 0;
  // Copies bytes out of, or into, the slab, and waits. `offset` + `bytes` is at most its size.
  // Errors: Unavailable, the device fails.
  virtual absl::Status Read(uint64_t offset, std::byte* to, uint64_t bytes) const = 0;
  virtual absl::Status Write(uint64_t offset, const std::byte* from, uint64_t bytes) const = 0;
};

class DeviceSlabs {
 public:
  virtual ~DeviceSlabs() = default;
  // Errors: DataLoss, the descriptor is no memory of our device, or not of that size; Unavailable.
  virtual absl::StatusOr<std::unique_ptr<DeviceSlab>> Import(UniqueFd slab, uint64_t bytes,
                                                             MemoryAccess access) = 0;
  // Host memory of this process that slots will be copied from and to, while it exists: lets the
  // device reach it at full rate. Takes up to 0.15 s a GiB. Failing is no error: copies are slower.
  virtual void RegisterHost(std::byte* data, uint64_t bytes, MemoryAccess access) = 0;
  virtual void UnregisterHost(std::byte* data) = 0;
};

}  // namespace kvstore::client
