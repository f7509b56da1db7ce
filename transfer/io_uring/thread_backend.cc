#include "transfer/io_uring/thread_backend.h"

#include <pthread.h>

#include <algorithm>
#include <cerrno>

namespace kvstore::transfer {
namespace {

int32_t Perform(const IoRequest& request) {
  const auto offset = static_cast<off_t>(request.offset);
  const ssize_t rc = request.direction == FileDirection::kRead
                         ? preadv(request.fd, request.parts, request.num_parts, offset)
                         : pwritev(request.fd, request.parts, request.num_parts, offset);
  return rc < 0 ? -errno : static_cast<int32_t>(rc);
}

}  // namespace

ThreadBackend::ThreadBackend(uint32_t num_threads) {
  for (uint32_t i = 0; i < std::max(num_threads, 1u); ++i) {
    threads_.emplace_back([this] { Work(); });
    pthread_setname_np(threads_.back().native_handle(), "kv-pread");
  }
}

ThreadBackend::~ThreadBackend() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

bool ThreadBackend::Start(const IoRequest& request) {
  started_.push_back(request);
  return true;
}

void ThreadBackend::Flush() {
  if (started_.empty()) return;
  absl::MutexLock lock(&mutex_);
  queue_.insert(queue_.end(), started_.begin(), started_.end());
  started_.clear();
}

void ThreadBackend::Cancel(uint64_t tag) {
  Flush();
  absl::MutexLock lock(&mutex_);
  auto it = std::find_if(queue_.begin(), queue_.end(),
                         [tag](const IoRequest& request) { return request.tag == tag; });
  if (it == queue_.end()) return;  // a worker has it: its result comes when the call returns
  queue_.erase(it);
  results_.push_back({tag, -ECANCELED});
}

void ThreadBackend::Wait(absl::Duration timeout, std::vector<IoResult>& results) {
  Flush();
  absl::MutexLock lock(&mutex_);
  if (timeout > absl::ZeroDuration()) {
    mutex_.AwaitWithTimeout(absl::Condition(this, &ThreadBackend::HasNews), timeout);
  }
  woken_ = false;
  results.insert(results.end(), results_.begin(), results_.end());
  results_.clear();
}

void ThreadBackend::Wake() {
  absl::MutexLock lock(&mutex_);
  woken_ = true;
}

absl::StatusOr<int> ThreadBackend::RegisterBuffer(MutableRegion) {
  return absl::UnimplementedError("pread/pwrite have no registered memory");
}

void ThreadBackend::Work() {
  for (;;) {
    IoRequest request;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &ThreadBackend::HasWork));
      if (queue_.empty()) return;
      request = queue_.front();
      queue_.pop_front();
    }
    const IoResult result{request.tag, Perform(request)};
    absl::MutexLock lock(&mutex_);
    results_.push_back(result);
  }
}

}  // namespace kvstore::transfer
