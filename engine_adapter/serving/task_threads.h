// TaskThreads runs tasks that may block, on a fixed number of threads behind a bounded queue.
//
// Threads: thread-safe.
#pragma once

#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace kvstore::engine {

class TaskThreads {
 public:
  using Task = std::function<void()>;

  // `name`: of the threads, at most 15 characters.
  TaskThreads(const std::string& name, size_t num_threads, size_t queue_max);
  ~TaskThreads();  // Stop()

  // False when queue_max tasks wait, or after Stop(): the task is not taken.
  [[nodiscard]] bool Post(Task task) ABSL_LOCKS_EXCLUDED(mutex_);
  // Runs what was posted, then ends the threads. By the owner; idempotent.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return is_stopping_ || !tasks_.empty();
  }
  void Run() ABSL_LOCKS_EXCLUDED(mutex_);

  const size_t queue_max_;
  absl::Mutex mutex_;
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace kvstore::engine
