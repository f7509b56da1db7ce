// Loads: longest-prefix match and lease in one step, and the way up of blocks that lie too cold.
//
// Confined to the core thread. A lease holds its blocks until Release(), its session's end, or its
// expiry, whichever comes first; moves that it started go on without it.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvstore/base/executor.h"
#include "kvstore/store/copies.h"
#include "kvstore/store/moves.h"
#include "kvstore/store/sessions.h"

namespace kvstore::store {

class Loads {
 public:
  using Observer = std::function<void(const AcquireUpdate&)>;
  Loads(const StoreOptions& options, Copies& copies, Moves& moves, SessionTable& sessions,
        Executor& executor, const Clock& clock);

  MatchResult Match(NamespaceId ns, std::span<const BlockHash> hashes) const;
  // Requires: `ns` is the session's tenant's.
  void Acquire(SessionId session, NamespaceId ns, std::span<const BlockHash> hashes,
               const AcquireOptions& options, Observer on_update);
  // Errors: NotFound. Blocks that were acquired, with the tier each was read from, are appended to
  // `*read_from` (optional).
  absl::Status Release(SessionId session, LeaseId lease,
                       std::vector<std::pair<NodeId, TierKind>>* read_from);
  absl::Status Renew(SessionId session, LeaseId lease);
  void ReleaseAll(Session* session);
  size_t size() const { return leases_.size(); }
  // Requires: the lease exists.
  size_t BlocksOf(LeaseId lease) const { return leases_.find(lease)->second.nodes.size(); }

 private:
  struct Lease {
    SessionId session;
    std::vector<NodeId> nodes;
    uint32_t matched = 0;  // leading nodes that are, or may still become, readable
    uint32_t pending = 0;  // of those, on their way up
    AcquireOptions options;
    absl::Time expires;
    Observer on_update;                       // null after the last update
    std::vector<AcquireUpdate::Ready> ready;  // not told yet
    absl::Status lost;                        // why matched shrank, not told yet
    bool is_flush_posted = false;
    std::vector<TierKind> read_from;  // [nodes]
    std::vector<bool> is_ready;       // [nodes]
  };

  // Where the block can be read now, if it can.
  std::optional<TierKind> ReadableTier(NodeId id, const AcquireOptions& options) const;
  // The tier to bring it up from.
  std::optional<TierKind> SourceTier(NodeId id) const;
  void Fetch(LeaseId id, uint32_t block);
  void OnSlices(LeaseId id, uint32_t block, TierKind from, uint32_t ready_slices);
  void OnFetched(LeaseId id, uint32_t block, TierKind from, const absl::Status& status);
  void Truncate(Lease* lease, uint32_t block, const absl::Status& why);
  void PostFlush(LeaseId id, Lease* lease);
  void Flush(LeaseId id);
  void End(LeaseId id);
  void ArmExpiry();
  void Expire();

  const StoreOptions& options_;
  Copies& copies_;
  Moves& moves_;
  SessionTable& sessions_;
  Executor& executor_;
  const Clock& clock_;
  uint64_t last_id_ = 0;
  std::map<LeaseId, Lease> leases_;
  std::deque<std::pair<absl::Time, LeaseId>>
      expiries_;  // in order; renewed leases are found late and queued again
  bool is_expiry_armed_ = false;
};

}  // namespace kvstore::store
