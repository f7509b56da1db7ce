// Runs an action once when nothing was reported for a time: how a stream of unknown length gets a
// deadline.
#pragma once

#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace kvstore::kvctl {

// Thread-safe. Owns one thread.
class StallGuard {
 public:
  // `on_stall` runs on the guard's thread, at most once, and never after the destructor returned.
  StallGuard(absl::Duration timeout, std::function<void()> on_stall);
  ~StallGuard();
  // The work went on.
  void Progress();
  bool has_fired() const;

 private:
  void Run();

  const absl::Duration timeout_;
  const std::function<void()> on_stall_;
  mutable absl::Mutex mutex_;
  absl::Time deadline_ ABSL_GUARDED_BY(mutex_);
  bool is_done_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_fired_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace kvstore::kvctl
