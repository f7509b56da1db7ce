// Where work is posted to run on another thread. The core thread is one executor; tests use a
// manual one.
#pragma once

#include <cstddef>
#include <deque>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kvstore/base/clock.h"

namespace kvstore {

using Task = absl::AnyInvocable<void()>;

// Runs tasks one after another, in the order in which they were posted.
class Executor {
 public:
  virtual ~Executor() = default;
  // Thread-safe; never blocks and never runs `task` inline. For completions, which must not be
  // lost: every completion belongs to an operation that was admitted under a bound, so the queue is
  // bounded by those bounds.
  virtual void Post(Task task) = 0;
  // Thread-safe. For new work: false, and `task` is dropped, when the queue holds its bound of
  // tasks (back-pressure).
  [[nodiscard]] virtual bool TryPost(Task task) = 0;
  // Runs `task` on the executor at `when` or soon after. For the executor's own thread only.
  virtual void PostAt(absl::Time when, Task task) = 0;
};

// One thread and its queue. Sleeps when idle.
class EventLoop final : public Executor {
 public:
  // `name`: of the thread, at most 15 characters. `queue_max`: bound for TryPost.
  EventLoop(std::string name, size_t queue_max, const Clock& clock);
  ~EventLoop() override;  // Stop()

  void Post(Task task) override ABSL_LOCKS_EXCLUDED(mutex_);
  bool TryPost(Task task) override ABSL_LOCKS_EXCLUDED(mutex_);
  void PostAt(absl::Time when, Task task) override ABSL_LOCKS_EXCLUDED(mutex_);
  // Runs what is queued, drops timers, joins the thread. Idempotent. Not from the loop's own
  // thread.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);
  // Posts `task` and waits until it ran. Not from the loop's own thread. Start-up, shutdown and
  // tests.
  void RunAndWait(Task task);
  bool IsCurrentThread() const { return std::this_thread::get_id() == thread_.get_id(); }
  // Tasks that wait, timers not counted.
  size_t queue_size() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Clock& clock_;
  const size_t queue_max_;
  mutable absl::Mutex mutex_;
  std::deque<Task> queue_ ABSL_GUARDED_BY(mutex_);
  std::multimap<absl::Time, Task> timers_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

// Runs nothing by itself: tests and simulation step it. Confined to one thread.
class ManualExecutor final : public Executor {
 public:
  explicit ManualExecutor(const Clock& clock) : clock_(clock) {}
  void Post(Task task) override { queue_.push_back(std::move(task)); }
  bool TryPost(Task task) override {
    Post(std::move(task));
    return true;
  }
  void PostAt(absl::Time when, Task task) override { timers_.emplace(when, std::move(task)); }
  // Runs one due task; false if none is due.
  bool RunOne();
  // Runs until nothing is due.
  void RunUntilIdle() {
    while (RunOne()) {
    }
  }
  // Time of the earliest timer, InfiniteFuture if there is none.
  absl::Time NextTimer() const {
    return timers_.empty() ? absl::InfiniteFuture() : timers_.begin()->first;
  }

 private:
  const Clock& clock_;
  std::deque<Task> queue_;
  std::multimap<absl::Time, Task> timers_;
};

}  // namespace kvstore
