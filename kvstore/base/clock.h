// Injected time. Deadlines and leases use the monotonic clock only; wall time is for display.
#pragma once

#include <chrono>

#include "absl/time/time.h"

namespace kvstore {

// Thread-safe. Now() is monotonic: its origin is arbitrary, only differences mean something.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;
};

class MonotonicClock final : public Clock {
 public:
  absl::Time Now() const override {
    auto since_start = std::chrono::steady_clock::now().time_since_epoch();
    return absl::UnixEpoch() +
           absl::Nanoseconds(
               std::chrono::duration_cast<std::chrono::nanoseconds>(since_start).count());
  }
};

// For tests and simulation. Confined to one thread.
class ManualClock final : public Clock {
 public:
  absl::Time Now() const override { return now_; }
  void Advance(absl::Duration by) { now_ += by; }

 private:
  absl::Time now_ = absl::UnixEpoch() + absl::Hours(1);
};

}  // namespace kvstore
