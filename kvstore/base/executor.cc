#include "kvstore/base/executor.h"

#include <pthread.h>

#include <utility>

#include "absl/synchronization/notification.h"

namespace kvstore {

EventLoop::EventLoop(std::string name, size_t queue_max, const Clock& clock)
    : clock_(clock), queue_max_(queue_max), thread_([this] { Run(); }) {
  pthread_setname_np(thread_.native_handle(), name.substr(0, 15).c_str());
}

EventLoop::~EventLoop() { Stop(); }

void EventLoop::Post(Task task) {
  absl::MutexLock lock(&mutex_);
  queue_.push_back(std::move(task));
}

bool EventLoop::TryPost(Task task) {
  absl::MutexLock lock(&mutex_);
  if (stopping_ || queue_.size() >= queue_max_) return false;
  queue_.push_back(std::move(task));
  return true;
}

void EventLoop::PostAt(absl::Time when, Task task) {
  absl::MutexLock lock(&mutex_);
  timers_.emplace(when, std::move(task));
}

void EventLoop::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void EventLoop::RunAndWait(Task task) {
  absl::Notification done;
  Post([&task, &done] {
    task();
    done.Notify();
  });
  done.WaitForNotification();
}

size_t EventLoop::queue_size() const {
  absl::MutexLock lock(&mutex_);
  return queue_.size();
}

bool EventLoop::HasWork() const { return stopping_ || !queue_.empty(); }

void EventLoop::Run() {
  std::deque<Task> batch;
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      absl::Duration sleep =
          timers_.empty() ? absl::InfiniteDuration() : timers_.begin()->first - clock_.Now();
      if (sleep > absl::ZeroDuration()) {
        mutex_.AwaitWithTimeout(absl::Condition(this, &EventLoop::HasWork), sleep);
      }
      batch.swap(queue_);
      if (batch.empty() && stopping_) return;
      const absl::Time now = clock_.Now();
      while (!timers_.empty() && timers_.begin()->first <= now) {
        batch.push_back(std::move(timers_.begin()->second));
        timers_.erase(timers_.begin());
      }
    }
    // Destroyed outside the lock as well: a task may own callbacks that post.
    while (!batch.empty()) {
      batch.front()();
      batch.pop_front();
    }
  }
}

bool ManualExecutor::RunOne() {
  Task task;
  if (!timers_.empty() && timers_.begin()->first <= clock_.Now()) {
    task = std::move(timers_.begin()->second);
    timers_.erase(timers_.begin());
  } else if (!queue_.empty()) {
    task = std::move(queue_.front());
    queue_.pop_front();
  } else {
    return false;
  }
  task();
  return true;
}

}  // namespace kvstore
