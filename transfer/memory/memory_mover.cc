#include "transfer/memory/memory_mover.h"

#include <pthread.h>

#include <deque>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "transfer/memory/page_codec.h"

namespace kvstore::transfer {

struct MemoryMover::Job {
  std::byte* dst = nullptr;        // null: verify only
  const std::byte* src = nullptr;  // null: accept what is in dst
  PageIdentity expect;
  absl::Time deadline;
  Done done;
};

struct MemoryMover::Shared {
  struct Completion {
    absl::Status status;
    Done done;
    bool is_counted = false;  // in in_flight
  };

  Shared(const Clock& c, Executor& e) : clock(c), executor(e) {}

  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) { return stopping || !waiting.empty(); }

  const Clock& clock;
  Executor& executor;
  mutable absl::Mutex mutex;
  std::deque<Job> waiting ABSL_GUARDED_BY(mutex);
  std::deque<Completion> completed ABSL_GUARDED_BY(mutex);
  size_t in_flight ABSL_GUARDED_BY(mutex) = 0;
  bool is_posted ABSL_GUARDED_BY(mutex) = false;  // a task that runs `completed` is queued
  bool stopping ABSL_GUARDED_BY(mutex) = false;

  // True: the caller has to post RunCompletions(), without the lock.
  [[nodiscard]] bool Complete(absl::Status status, Done done, bool is_counted)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    completed.push_back({std::move(status), std::move(done), is_counted});
    return !std::exchange(is_posted, true);
  }
  // As Complete() for all that wait beyond their deadline.
  [[nodiscard]] bool ExpireWaiting(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    bool must_post = false;
    for (auto it = waiting.begin(); it != waiting.end();) {
      if (now < it->deadline) {
        ++it;
        continue;
      }
      must_post |= Complete(absl::DeadlineExceededError("the copy did not start in time"),
                            std::move(it->done), true);
      it = waiting.erase(it);
    }
    return must_post;
  }
};

namespace {

absl::Status RunJob(std::byte* dst, const std::byte* src, const PageIdentity& expect) {
  if (src == nullptr) return AcceptSlot(dst, expect);
  return dst == nullptr ? VerifySlot(src, expect) : CopySlot(dst, src, expect);
}

}  // namespace

MemoryMover::MemoryMover(Options options, Executor& executor, const Clock& clock)
    : options_(std::move(options)), shared_(std::make_shared<Shared>(clock, executor)) {
  for (uint32_t i = 0; i < options_.num_threads; ++i) {
    threads_.emplace_back([shared = shared_] { RunThread(shared); });
    pthread_setname_np(threads_.back().native_handle(), options_.name.substr(0, 15).c_str());
  }
}

MemoryMover::~MemoryMover() { Stop(); }

void MemoryMover::Copy(std::byte* dst, const std::byte* src, const PageIdentity& expect,
                       absl::Time deadline, Done done) {
  Submit({dst, src, expect, deadline, std::move(done)});
}

void MemoryMover::Verify(const std::byte* slot, const PageIdentity& expect, absl::Time deadline,
                         Done done) {
  Submit({nullptr, slot, expect, deadline, std::move(done)});
}

void MemoryMover::Accept(std::byte* slot, const PageIdentity& expect, absl::Time deadline,
                         Done done) {
  Submit({slot, nullptr, expect, deadline, std::move(done)});
}

void MemoryMover::Fail(absl::Status status, Done done) {
  bool must_post;
  {
    absl::MutexLock lock(&shared_->mutex);
    must_post = shared_->Complete(std::move(status), std::move(done), false);
  }
  if (must_post) PostCompletions(shared_);
}

void MemoryMover::Submit(Job job) {
  absl::Status refused;
  {
    absl::MutexLock lock(&shared_->mutex);
    if (shared_->stopping) {
      refused = absl::UnavailableError("the mover is stopped");
    } else if (shared_->in_flight >= options_.inflight_max) {
      refused = absl::ResourceExhaustedError(
          absl::StrCat(options_.inflight_max, " operations are in flight, the most allowed"));
    } else {
      ++shared_->in_flight;
      shared_->waiting.push_back(std::move(job));
      return;
    }
  }
  Fail(std::move(refused), std::move(job.done));
}

void MemoryMover::Stop() {
  {
    absl::MutexLock lock(&shared_->mutex);
    shared_->stopping = true;
    for (Job& job : shared_->waiting) {
      // Called below; no task is posted for them.
      shared_->completed.push_back(
          {absl::UnavailableError("stopped before the copy started"), std::move(job.done), true});
    }
    shared_->waiting.clear();
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  while (RunOneCompletion(*shared_)) {
  }
}

size_t MemoryMover::in_flight() const {
  absl::MutexLock lock(&shared_->mutex);
  return shared_->in_flight;
}

void MemoryMover::RunThread(const std::shared_ptr<Shared>& shared) {
  for (;;) {
    Job job;
    bool has_job = false;
    bool must_post = false;
    {
      absl::MutexLock lock(&shared->mutex);
      shared->mutex.Await(absl::Condition(shared.get(), &Shared::HasWork));
    }
    const absl::Time now = shared->clock.Now();
    {
      absl::MutexLock lock(&shared->mutex);
      if (shared->stopping) return;
      must_post = shared->ExpireWaiting(now);
      if (!shared->waiting.empty()) {
        job = std::move(shared->waiting.front());
        shared->waiting.pop_front();
        has_job = true;
      }
    }
    if (must_post) PostCompletions(shared);
    if (!has_job) continue;
    absl::Status status = RunJob(job.dst, job.src, job.expect);
    {
      absl::MutexLock lock(&shared->mutex);
      must_post = shared->Complete(std::move(status), std::move(job.done), true);
    }
    if (must_post) PostCompletions(shared);
  }
}

void MemoryMover::PostCompletions(const std::shared_ptr<Shared>& shared) {
  shared->executor.Post([shared] { RunCompletions(shared); });
}

void MemoryMover::RunCompletions(const std::shared_ptr<Shared>& shared) {
  size_t due;
  {
    absl::MutexLock lock(&shared->mutex);
    shared->is_posted = false;
    due = shared->completed.size();
  }
  // Only what is due now: a `done` that submits again and is refused must not keep the executor
  // here.
  while (due-- > 0 && RunOneCompletion(*shared)) {
  }
}

bool MemoryMover::RunOneCompletion(Shared& shared) {
  Shared::Completion completion;
  {
    absl::MutexLock lock(&shared.mutex);
    if (shared.completed.empty()) return false;
    completion = std::move(shared.completed.front());
    shared.completed.pop_front();
    if (completion.is_counted) --shared.in_flight;
  }
  completion.done(std::move(completion.status));
  return true;
}

}  // namespace kvstore::transfer
