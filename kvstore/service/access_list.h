// Who may connect, and as whom.
//
//   our own uid, root         any tenant that it names; its home tenant is the one that the tenants
//                             file gives it, else "default"; the Admin service
//   with a tenants file       a listed uid or certificate name: the tenant that lists it, no other
//   with auth.allow_uids      uid N: tenant "uid-N" and no other
//   loopback TCP (insecure)   nobody in particular: tenant "default" and no other
//   everyone else             not connected at all
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/service/caller.h"
#include "kvstore/service/tenants.h"

namespace kvstore::service {

// Immutable.
class AccessList {
 public:
  AccessList(uid_t own_uid, std::vector<uid_t> allowed)
      : own_uid_(own_uid), allowed_(std::move(allowed)) {}
  // With a tenants file.
  AccessList(uid_t own_uid, std::vector<TenantRule> tenants)
      : own_uid_(own_uid), has_file_(true), tenants_(std::move(tenants)) {}

  // nullopt: may not connect.
  std::optional<Caller> CallerOf(uid_t uid) const;
  // The caller whose certificate, already verified, bears `names` (canonical). nullopt: no tenant
  // lists any of them, or more than one tenant does.
  std::optional<Caller> CallerOf(std::span<const std::string> names) const;
  static Caller LoopbackCaller() { return Caller{.way = Caller::Way::kLoopback}; }
  // Everyone who may come, by Unix socket and by certificate.
  std::vector<Caller> Callers() const;

  // Whether other uids may reach the socket files.
  bool allows_others() const { return has_file_ || !allowed_.empty(); }
  // What the tenants file adds to the fingerprints of `tenant`; empty: nothing.
  std::string SaltOf(std::string_view tenant) const;

 private:
  const TenantRule* RuleOf(uid_t uid) const;

  const uid_t own_uid_;
  const bool has_file_ = false;
  const std::vector<uid_t> allowed_;
  const std::vector<TenantRule> tenants_;
};

// The list that holds now. Thread-safe.
class AccessTable {
 public:
  explicit AccessTable(AccessList list) { Set(std::move(list)); }
  // Shared: a reader keeps the list it began with while a reload replaces it.
  std::shared_ptr<const AccessList> Now() const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return list_;
  }
  void Set(AccessList list) ABSL_LOCKS_EXCLUDED(mutex_) {
    auto fresh = std::make_shared<const AccessList>(std::move(list));
    absl::MutexLock lock(&mutex_);
    list_.swap(fresh);
  }

 private:
  mutable absl::Mutex mutex_;
  std::shared_ptr<const AccessList> list_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvstore::service
