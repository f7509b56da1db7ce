// Brings completions from progress and background threads to the core thread, many in one task.
#pragma once

#include <deque>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/base/executor.h"

namespace kvstore::tiers {

// Post() is thread-safe; Drain() runs on the core thread. Held by shared_ptr because a task that is
// still queued in the executor may outlive the tier; it then finds nothing to run.
class CompletionQueue : public std::enable_shared_from_this<CompletionQueue> {
 public:
  explicit CompletionQueue(Executor& core) : core_(core) {}

  void Post(Task task) ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      absl::MutexLock lock(&mutex_);
      tasks_.push_back(std::move(task));
      if (std::exchange(is_posted_, true)) return;
    }
    core_.Post([self = shared_from_this()] { self->Drain(); });
  }

  // Runs what is queued. Also called by Stop(), which must not leave completions behind: one task
  // at a time, so that a Stop() inside a completion takes over all that are left.
  void Drain() ABSL_LOCKS_EXCLUDED(mutex_) {
    for (;;) {
      Task task;
      {
        absl::MutexLock lock(&mutex_);
        if (tasks_.empty()) {
          is_posted_ = false;
          return;
        }
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      task();
    }
  }

 private:
  Executor& core_;
  absl::Mutex mutex_;
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  bool is_posted_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace kvstore::tiers
