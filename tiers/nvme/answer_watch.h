// Whether a device that was given work still answers: one directory, or the index.
//
// A deadline does not tell. An operation that the kernel does not let go of has no outcome yet, and
// one that is late because many were before it says nothing against the device.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace kvstore::tiers {

// Thread-safe.
class AnswerWatch {
 public:
  void Began(absl::Time now) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    if (in_flight_++ == 0) waiting_since_ = now;
  }
  // `is_answer`: the device did something. False: it was not asked after all.
  void Ended(absl::Time now, bool is_answer) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    --in_flight_;
    if (is_answer) waiting_since_ = now;
  }
  // The device did something, and has not ended what it does.
  void Answered(absl::Time now) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    waiting_since_ = now;
  }
  // Since when it has work and has ended none of it; nullopt: it has none.
  std::optional<absl::Time> WaitingSince() const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    if (in_flight_ == 0) return std::nullopt;
    return waiting_since_;
  }

 private:
  mutable absl::Mutex mutex_;
  uint64_t in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time waiting_since_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvstore::tiers
