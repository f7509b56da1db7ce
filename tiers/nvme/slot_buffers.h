// Aligned memory for slots that are encrypted on their way to disk, reused and bounded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace kvstore::tiers {

// Thread-safe. At most `bytes_max` are out or kept, but one buffer can always be had.
class SlotBuffers : public std::enable_shared_from_this<SlotBuffers> {
 public:
  explicit SlotBuffers(uint64_t bytes_max) : bytes_max_(bytes_max) {}
  ~SlotBuffers() {
    for (const Buffer& buffer : free_) std::free(buffer.data);
  }
  SlotBuffers(const SlotBuffers&) = delete;
  SlotBuffers& operator=(const SlotBuffers&) = delete;

  struct Buffer {
    std::byte* data = nullptr;
    uint64_t bytes = 0;
  };
  // Null `data`: not now, others must be given back first.
  Buffer Take(uint64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    for (Buffer& buffer : free_) {
      if (buffer.bytes != bytes) continue;
      std::swap(buffer, free_.back());
      const Buffer taken = free_.back();
      free_.pop_back();
      ++num_out_;
      return taken;
    }
    while (all_bytes_ + bytes > bytes_max_ && !free_.empty()) {
      all_bytes_ -= free_.back().bytes;
      std::free(free_.back().data);
      free_.pop_back();
    }
    if (all_bytes_ + bytes > bytes_max_ && num_out_ > 0) return {};
    const Buffer made{static_cast<std::byte*>(std::aligned_alloc(4096, bytes)), bytes};
    if (made.data == nullptr) return {};
    all_bytes_ += bytes;
    ++num_out_;
    return made;
  }
  void GiveBack(Buffer buffer) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    --num_out_;
    free_.push_back(buffer);
  }

 private:
  const uint64_t bytes_max_;
  absl::Mutex mutex_;
  std::vector<Buffer> free_ ABSL_GUARDED_BY(mutex_);
  uint64_t all_bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // out and kept
  size_t num_out_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Gives its buffer back, if it has one.
class SlotBufferLease {
 public:
  explicit SlotBufferLease(std::shared_ptr<SlotBuffers> owner) : owner_(std::move(owner)) {}
  ~SlotBufferLease() {
    if (buffer_.data != nullptr) owner_->GiveBack(buffer_);
  }
  SlotBufferLease(const SlotBufferLease&) = delete;
  SlotBufferLease& operator=(const SlotBufferLease&) = delete;
  // Null: not now.
  std::byte* Take(uint64_t bytes) {
    buffer_ = owner_->Take(bytes);
    return buffer_.data;
  }

 private:
  const std::shared_ptr<SlotBuffers> owner_;
  SlotBuffers::Buffer buffer_;
};

}  // namespace kvstore::tiers
