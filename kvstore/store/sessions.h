// Who holds what: sessions, and the leases and reservations that end with them.
//
// Confined to the core thread.
#pragma once

#include <map>
#include <set>

#include "absl/status/statusor.h"
#include "kvstore/base/strong_id.h"
#include "kvstore/store/tenant_table.h"

namespace kvstore::store {

struct Session {
  TenantId tenant;
  std::set<LeaseId> leases;
  std::set<ReservationId> reservations;
  size_t reserved_blocks = 0;
};

class SessionTable {
 public:
  SessionTable(size_t sessions_max, TenantTable& tenants)
      : sessions_max_(sessions_max), tenants_(tenants) {}

  // Errors: ResourceExhausted, too many; of one tenant that is three quarters of all.
  absl::StatusOr<SessionId> Open(TenantId tenant) {
    size_t& of_tenant = tenants_.tenant(tenant).sessions;
    if (sessions_.size() >= sessions_max_)
      return absl::ResourceExhaustedError("too many sessions (server.sessions_max)");
    if (of_tenant >= sessions_max_ - sessions_max_ / 4) {
      return absl::ResourceExhaustedError(
          "too many sessions of this tenant (three quarters of server.sessions_max)");
    }
    ++of_tenant;
    const SessionId id(++last_id_);
    sessions_[id].tenant = tenant;
    return id;
  }
  // Null if it has ended. Pointers stay valid until Erase().
  Session* Find(SessionId id) {
    auto it = sessions_.find(id);
    return it == sessions_.end() ? nullptr : &it->second;
  }
  // Requires: it exists.
  void Erase(SessionId id) {
    const auto it = sessions_.find(id);
    --tenants_.tenant(it->second.tenant).sessions;
    sessions_.erase(it);
  }
  const std::map<SessionId, Session>& all() const { return sessions_; }
  size_t size() const { return sessions_.size(); }

 private:
  const size_t sessions_max_;
  TenantTable& tenants_;
  uint64_t last_id_ = 0;
  std::map<SessionId, Session> sessions_;
};

}  // namespace kvstore::store
