#include "engine_adapter/serving/task_threads.h"

#include <pthread.h>

#include <utility>

namespace kvstore::engine {

TaskThreads::TaskThreads(const std::string& name, size_t num_threads, size_t queue_max)
    : queue_max_(queue_max) {
  for (size_t i = 0; i < num_threads; ++i) {
    threads_.emplace_back([this] { Run(); });
    pthread_setname_np(threads_.back().native_handle(), name.c_str());
  }
}

TaskThreads::~TaskThreads() { Stop(); }

void TaskThreads::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    is_stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

bool TaskThreads::Post(Task task) {
  absl::MutexLock lock(&mutex_);
  if (is_stopping_ || tasks_.size() >= queue_max_) return false;
  tasks_.push_back(std::move(task));
  return true;
}

void TaskThreads::Run() {
  for (;;) {
    Task task;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &TaskThreads::HasWork));
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

}  // namespace kvstore::engine
