// Aligned buffers for the tails of slots being written, reused.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "tiers/nvme/nvme_tier.h"
#include "tiers/nvme/slot_record.h"

namespace kvstore::tiers {

// Thread-safe: taken on the core thread, given back on progress threads. Never holds more buffers
// than there were writes in flight at once.
class NvmeTier::TailBuffers : public std::enable_shared_from_this<NvmeTier::TailBuffers> {
 public:
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };
  using Memory = std::unique_ptr<std::byte, Free>;

  // Gives the buffer back when destroyed.
  class Lease {
   public:
    Lease(std::shared_ptr<TailBuffers> owner, Memory memory)
        : owner_(std::move(owner)), memory_(std::move(memory)) {}
    ~Lease() {
      if (memory_ != nullptr) owner_->Return(std::move(memory_));
    }
    Lease(Lease&&) = default;
    Lease& operator=(Lease&&) = delete;
    std::byte* data() const { return memory_.get(); }

   private:
    std::shared_ptr<TailBuffers> owner_;
    Memory memory_;
  };

  Lease Take() ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      absl::MutexLock lock(&mutex_);
      if (!free_.empty()) {
        Memory memory = std::move(free_.back());
        free_.pop_back();
        return {shared_from_this(), std::move(memory)};
      }
    }
    return {shared_from_this(),
            Memory(static_cast<std::byte*>(std::aligned_alloc(4096, kTailBytesMax)))};
  }

 private:
  void Return(Memory memory) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    free_.push_back(std::move(memory));
  }

  absl::Mutex mutex_;
  std::vector<Memory> free_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvstore::tiers
