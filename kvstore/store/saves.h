// Saves: two-phase writes by clients. Reserve hands out pages, Commit publishes them, the write
// policy sends copies to colder tiers.
//
// Confined to the core thread.
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvstore/base/executor.h"
#include "kvstore/store/copies.h"
#include "kvstore/store/room.h"
#include "kvstore/store/sessions.h"

namespace kvstore::store {

class Saves {
 public:
  Saves(const StoreOptions& options, Copies& copies, Room& room, NamespaceTable& namespaces,
        SessionTable& sessions, Executor& executor, const Clock& clock);

  // As Store::Reserve. Requires: `ns` is the session's tenant's.
  absl::StatusOr<ReserveResult> Reserve(SessionId session, NamespaceId ns,
                                        std::optional<BlockHash> parent, uint32_t first_block_index,
                                        std::span<const BlockHash> hashes, TierKind tier);
  // As Store::Commit; published blocks are told to `on_published`.
  absl::Status Commit(SessionId session, ReservationId reservation,
                      std::span<const CommitBlock> blocks);
  absl::Status Abort(SessionId session, ReservationId reservation);
  void AbortAll(Session* session);
  void set_on_published(std::function<void(NodeId, TierKind)> f) { on_published_ = std::move(f); }
  size_t size() const { return reservations_.size(); }

 private:
  struct Reservation {
    SessionId session;
    NamespaceId ns;
    TierKind tier{};
    std::vector<NodeId> nodes;  // [hashes]; kNoNode: not reserved, or committed already
    size_t num_open = 0;
    absl::Time expires;
  };

  absl::StatusOr<NodeId> FindParent(NamespaceId ns, const std::optional<BlockHash>& parent,
                                    uint32_t first_block_index) const;
  ReserveState StateOf(NodeId id, TierKind tier) const;
  absl::Status CheckCommit(const Reservation& r, std::span<const CommitBlock> blocks) const;
  void End(ReservationId id);
  void ArmExpiry();
  void Expire();

  const StoreOptions& options_;
  Copies& copies_;
  Room& room_;
  NamespaceTable& namespaces_;
  SessionTable& sessions_;
  Executor& executor_;
  const Clock& clock_;
  std::function<void(NodeId, TierKind)> on_published_;
  uint64_t last_id_ = 0;
  std::map<ReservationId, Reservation> reservations_;
  std::deque<std::pair<absl::Time, ReservationId>> expiries_;  // in order: all live equally long
  bool is_expiry_armed_ = false;
};

}  // namespace kvstore::store
