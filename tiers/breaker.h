// Whether a device is worth asking. What waits for a device that does not answer waits in vain:
// after a few failures the tier says so at once, and asks again, by itself, until it answers.
//
//                 failures outnumber successes by failures_max, or Trip()
//   kClosed -----------------------------------------------------------------> kOpen
//      ^                                                                       |   ^
//      | RecordSuccess()                          BeginProbe(), from probe_at() |   |
//      RecordFailure()
//      +------------------------------- kHalfOpen <----------------------------+---+
//
// No state is sticky: every failure is outweighed by one success, and an open breaker is probed for
// as long as it is open. What counts as a failure is for the owner to say: a device that answers
// late or not at all, or with an error of its own; not a page that differs.
//
// Confined to one thread (tiers: the core thread). Reads no clock.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "absl/time/time.h"

namespace kvstore::tiers {

enum class BreakerState : uint8_t { kClosed = 0, kOpen = 1, kHalfOpen = 2 };  // as exported

inline std::string_view BreakerName(BreakerState state) {
  constexpr std::string_view kNames[] = {"closed", "open", "half-open"};
  return kNames[static_cast<size_t>(state)];
}

class Breaker {
 public:
  struct Options {
    // Net failures until it opens: more than a disk with single bad sectors gets together, few
    // enough to be over within one queue of a disk that has gone.
    uint32_t failures_max = 8;
    absl::Duration probe_after = absl::Seconds(1);
  };
  explicit Breaker(Options options) : options_(options) {}

  void RecordSuccess() {
    failures_ -= failures_ > 0;
    if (state_ == BreakerState::kHalfOpen) Close();
  }
  // True: this failure has opened it, or opened it again.
  bool RecordFailure(absl::Time now, std::string reason) {
    ++failures_;
    const bool opens = state_ == BreakerState::kHalfOpen ||
                       (state_ == BreakerState::kClosed && failures_ >= options_.failures_max);
    return opens && Trip(now, std::move(reason));
  }
  // Opens at once: for a device that has stopped answering. False: it was open.
  bool Trip(absl::Time now, std::string reason) {
    if (state_ == BreakerState::kOpen) return false;
    openings_ += state_ == BreakerState::kClosed;
    state_ = BreakerState::kOpen;
    reason_ = std::move(reason);
    probe_at_ = now + options_.probe_after;
    return true;
  }
  // The owner asks the device once more and reports the outcome. Requires: kOpen.
  void BeginProbe() { state_ = BreakerState::kHalfOpen; }

  BreakerState state() const { return state_; }
  bool is_closed() const { return state_ == BreakerState::kClosed; }
  absl::Time probe_at() const { return probe_at_; }      // when kOpen
  const std::string& reason() const { return reason_; }  // why it opened last
  uint64_t openings() const { return openings_; }        // from closed

 private:
  void Close() {
    state_ = BreakerState::kClosed;
    failures_ = 0;
  }

  const Options options_;
  BreakerState state_ = BreakerState::kClosed;
  uint32_t failures_ = 0;  // minus successes, at least 0
  absl::Time probe_at_ = absl::InfiniteFuture();
  std::string reason_;
  uint64_t openings_ = 0;
};

}  // namespace kvstore::tiers
