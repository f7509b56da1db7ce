#include "tools/kvctl/stall_guard.h"

#include <utility>

#include "absl/time/clock.h"

namespace kvstore::kvctl {

StallGuard::StallGuard(absl::Duration timeout, std::function<void()> on_stall)
    : timeout_(timeout),
      on_stall_(std::move(on_stall)),
      deadline_(absl::Now() + timeout),
      thread_([this] { Run(); }) {}

StallGuard::~StallGuard() {
  {
    absl::MutexLock lock(&mutex_);
    is_done_ = true;
  }
  thread_.join();
}

void StallGuard::Progress() {
  absl::MutexLock lock(&mutex_);
  deadline_ = absl::Now() + timeout_;
}

bool StallGuard::has_fired() const {
  absl::MutexLock lock(&mutex_);
  return has_fired_;
}

void StallGuard::Run() {
  {
    absl::MutexLock lock(&mutex_);
    while (!is_done_ && absl::Now() < deadline_) {
      mutex_.AwaitWithDeadline(absl::Condition(&is_done_), deadline_);
    }
    if (is_done_) return;
    has_fired_ = true;
  }
  on_stall_();
}

}  // namespace kvstore::kvctl
