// PageBuffer owns the private memory of one page, aligned to a memory page.
#pragma once

#include <absl/status/statusor.h>

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace kvstore::engine {

class PageBuffer {
 public:
  static constexpr size_t kAlignment = 4096;

  // Errors: ResourceExhausted.
  static absl::StatusOr<PageBuffer> Allocate(size_t num_bytes);

  std::byte* data() { return memory_.get(); }
  const std::byte* data() const { return memory_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  PageBuffer(std::byte* memory, size_t size) : memory_(memory), size_(size) {}

  std::unique_ptr<std::byte, Free> memory_;
  size_t size_ = 0;
};

}  // namespace kvstore::engine
