// Who holds what: sessions, and the leases and reservations that end with them.
//
// Confined to the core thread.
#pragma once

#include <map>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "kvstore/base/strong_id.h"

namespace kvstore::store {

struct Session {
  std::string tenant;
  std::set<LeaseId> leases;
  std::set<ReservationId> reservations;
  size_t reserved_blocks = 0;
};

class SessionTable {
 public:
  explicit SessionTable(size_t sessions_max) : sessions_max_(sessions_max) {}

  // Errors: ResourceExhausted.
  absl::StatusOr<SessionId> Open(std::string_view tenant) {
    if (sessions_.size() >= sessions_max_)
      return absl::ResourceExhaustedError("too many sessions (server.sessions_max)");
    const SessionId id(++last_id_);
    sessions_[id].tenant = std::string(tenant);
    return id;
  }
  // Null if it has ended. Pointers stay valid until Erase().
  Session* Find(SessionId id) {
    auto it = sessions_.find(id);
    return it == sessions_.end() ? nullptr : &it->second;
  }
  void Erase(SessionId id) { sessions_.erase(id); }
  size_t size() const { return sessions_.size(); }

 private:
  const size_t sessions_max_;
  uint64_t last_id_ = 0;
  std::map<SessionId, Session> sessions_;
};

}  // namespace kvstore::store
