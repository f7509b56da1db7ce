// Bounds what calls in progress hold: how many, of which tenant, and how many bytes. Over a bound a
// call is refused at once, before any work.
//
// A tenant alone never gets everything: at most `calls_per_tenant` calls, and three quarters of the
// bytes.
//
// Thread-safe. A ticket must not outlive the gate.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/node_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace kvstore::service {

class CallGate {
 public:
  struct Limits {
    size_t calls = 1024;
    size_t calls_per_tenant = 512;
    size_t bytes = size_t{256} << 20;
  };

 private:
  // What the calls of one tenant hold.
  struct Account {
    size_t calls = 0;
    size_t bytes = 0;
    size_t calls_max = 0;  // 0: Limits::calls_per_tenant
  };
  // Pointers to accounts stay valid while a ticket refers to them.
  using Accounts = absl::node_hash_map<std::string, Account>;

 public:
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
    Ticket(CallGate* gate, Accounts::value_type* account, size_t bytes)
        : gate_(gate), account_(account), bytes_(bytes) {}
    CallGate* gate_ = nullptr;
    Accounts::value_type* account_ = nullptr;
    size_t bytes_ = 0;
  };

  explicit CallGate(const Limits& limits) : limits_(limits) {}
  // `tenant`: who the call counts for. Errors: ResourceExhausted, naming the limit.
  absl::StatusOr<Ticket> Admit(std::string_view tenant, size_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // Bounds the calls of one tenant from here on; 0: as all others. Calls in progress go on.
  void SetCallsMax(std::string_view tenant, size_t calls_max) ABSL_LOCKS_EXCLUDED(mutex_);

  struct Counters {
    size_t calls = 0;
    size_t bytes = 0;
    uint64_t refused_calls = 0;
  };
  Counters counters() const ABSL_LOCKS_EXCLUDED(mutex_);
  struct TenantCounters {
    size_t calls = 0;
    size_t bytes = 0;
    size_t calls_max = 0;
  };
  TenantCounters CountersOf(std::string_view tenant) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  size_t CallsMaxOf(const Account& account) const {
    return account.calls_max == 0 ? limits_.calls_per_tenant : account.calls_max;
  }
  // Empty: the bytes fit.
  std::string FullOfBytes(const Account& account, size_t bytes) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ForgetIfIdle(Accounts::value_type& account) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Limits limits_;
  mutable absl::Mutex mutex_;
  size_t calls_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t refused_calls_ ABSL_GUARDED_BY(mutex_) = 0;
  Accounts accounts_ ABSL_GUARDED_BY(mutex_);  // by tenant: of calls in progress, or a calls_max
};

}  // namespace kvstore::service
