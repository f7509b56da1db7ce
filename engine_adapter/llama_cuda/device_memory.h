// DeviceMemory owns one allocation on the current CUDA device, PinnedMemory one of page-locked host
// memory that copies to and from the device go through.
//
// Threads: externally synchronised. Freed on destruction, which waits for the device.
#pragma once

#include <absl/status/statusor.h>

#include <cstddef>
#include <memory>

namespace kvstore::engine {

class DeviceMemory {
 public:
  // Contents unspecified; aligned to 256 bytes. Errors: ResourceExhausted, saying how much is free.
  static absl::StatusOr<DeviceMemory> Allocate(size_t num_bytes);

  DeviceMemory() = default;  // empty
  template <typename T = std::byte>
  T* data() const {
    return reinterpret_cast<T*>(memory_.get());
  }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  std::unique_ptr<std::byte, Free> memory_;
  size_t size_ = 0;
};

class PinnedMemory {
 public:
  // Errors: ResourceExhausted.
  static absl::StatusOr<PinnedMemory> Allocate(size_t num_bytes);

  PinnedMemory() = default;  // empty
  template <typename T = std::byte>
  T* data() const {
    return reinterpret_cast<T*>(memory_.get());
  }

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  std::unique_ptr<std::byte, Free> memory_;
};

}  // namespace kvstore::engine
