// IoBackend on blocking preadv/pwritev in a few threads, for kernels and containers that forbid
// io_uring. No registered memory or files.
//
// Confined to its creator except Wake(). A request that a worker has begun cannot be cancelled: its
// result comes when the system call returns.
#pragma once

#include <cstdint>
#include <deque>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "transfer/io_uring/io_backend.h"

namespace kvstore::transfer {

class ThreadBackend final : public IoBackend {
 public:
  explicit ThreadBackend(uint32_t num_threads);
  ~ThreadBackend() override;  // no request is outstanding

  bool Start(const IoRequest& request) override;
  void Cancel(uint64_t tag) override ABSL_LOCKS_EXCLUDED(mutex_);
  void Flush() override ABSL_LOCKS_EXCLUDED(mutex_);
  void Wait(absl::Duration timeout, std::vector<IoResult>& results) override
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Wake() override ABSL_LOCKS_EXCLUDED(mutex_);
  int RegisterFile(int) override { return -1; }
  absl::StatusOr<int> RegisterBuffer(MutableRegion) override;
  void UnregisterBuffer(int) override {}

 private:
  void Work() ABSL_LOCKS_EXCLUDED(mutex_);
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !queue_.empty();
  }
  bool HasNews() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return woken_ || !results_.empty(); }

  std::vector<IoRequest> started_;  // not flushed yet; progress thread only
  absl::Mutex mutex_;
  std::deque<IoRequest> queue_ ABSL_GUARDED_BY(mutex_);
  std::vector<IoResult> results_ ABSL_GUARDED_BY(mutex_);
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace kvstore::transfer
