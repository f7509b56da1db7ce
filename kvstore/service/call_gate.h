// Bounds what calls in progress hold: how many, of whom, and how many bytes. Over a bound a call is
// refused at once, before any work.
//
// Thread-safe. A ticket may outlive nothing but must not outlive the gate.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace kvstore::service {

class CallGate {
 public:
  struct Limits {
    size_t calls = 1024;
    size_t calls_per_caller = 512;
    size_t bytes = size_t{256} << 20;
  };
  // Who is counted together: a uid, or all of loopback TCP.
  using CallerKey = int64_t;

  // Holds a place until destroyed. Movable.
  class Ticket {
   public:
    Ticket() = default;
    Ticket(Ticket&& other) noexcept { *this = std::move(other); }
    Ticket& operator=(Ticket&& other) noexcept;
    ~Ticket() { Release(); }
    // Adds to what the call holds, e.g. a page buffer. Errors: ResourceExhausted.
    absl::Status Grow(size_t bytes);
    void Release();

   private:
    friend class CallGate;
    Ticket(CallGate* gate, CallerKey key, size_t bytes) : gate_(gate), key_(key), bytes_(bytes) {}
    CallGate* gate_ = nullptr;
    CallerKey key_ = 0;
    size_t bytes_ = 0;
  };

  explicit CallGate(const Limits& limits) : limits_(limits) {}
  // Errors: ResourceExhausted, naming the limit.
  absl::StatusOr<Ticket> Admit(CallerKey caller, size_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  struct Counters {
    size_t calls = 0;
    size_t bytes = 0;
    uint64_t refused_calls = 0;
  };
  Counters counters() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  const Limits limits_;
  mutable absl::Mutex mutex_;
  size_t calls_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t refused_calls_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_map<CallerKey, size_t> calls_by_caller_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvstore::service
