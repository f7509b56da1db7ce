// AlignedBuffer owns private memory for pages, weights and work space. Large ones ask for huge
// pages: streaming 270 MB of weights for each token otherwise spends its time on address
// translation.
#pragma once

#include <absl/status/statusor.h>

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace kvstore::engine {

class AlignedBuffer {
 public:
  static constexpr size_t kAlignment = 4096;
  static constexpr size_t kHugePageBytes = size_t{2} << 20;

  // Contents unspecified. Errors: ResourceExhausted.
  static absl::StatusOr<AlignedBuffer> Allocate(size_t num_bytes);

  AlignedBuffer() = default;  // empty
  std::byte* data() { return memory_.get(); }
  const std::byte* data() const { return memory_.get(); }
  size_t size() const { return size_; }
  // The caller owns it from here on, and gives it to std::free.
  std::byte* Release() && { return memory_.release(); }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  AlignedBuffer(std::byte* memory, size_t size) : memory_(memory), size_(size) {}

  std::unique_ptr<std::byte, Free> memory_;
  size_t size_ = 0;
};

}  // namespace kvstore::engine
