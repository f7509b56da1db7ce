// WriteBehind gives colder tiers their copies: at once (write-through, and while the store drains),
// or when room gets short (write-back).
//
// What a colder tier could not take (full, failing, still recovering) counts as clean meanwhile, so
// that it cannot fill memory with blocks that wait; it is offered again, a few blocks at a time,
// until it is taken or evicted.
//
// Confined to the core thread.
#pragma once

#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "kvstore/policy/policies.h"
#include "kvstore/store/copies.h"
#include "kvstore/store/moves.h"

namespace kvstore::store {

class WriteBehind {
 public:
  WriteBehind(const policy::PolicyOptions& policy, Copies& copies, Moves& moves, Executor& executor,
              const Clock& clock)
      : policy_(policy), copies_(copies), moves_(moves), executor_(executor), clock_(clock) {}

  // A copy of the block has become readable in `kind`.
  void OnPublished(NodeId id, TierKind kind);
  // A block has come back in `kind` only: it is offered to the tier below as if that had been away.
  void OnRecovered(NodeId id, TierKind kind);
  // Starts a copy of a dirty block in the tier below `kind`. False: it cannot be saved now.
  bool Start(NodeId id, TierKind kind);
  // Nothing is kept back while the store drains.
  void set_is_draining(bool is_draining) { is_draining_ = is_draining; }

 private:
  void KeepRoom(NodeId id, TierKind kind);
  void ArmRetry();
  void Retry();

  const policy::PolicyOptions& policy_;
  Copies& copies_;
  Moves& moves_;
  Executor& executor_;
  const Clock& clock_;
  bool is_retry_armed_ = false;
  NodeId next_retry_ = 0;
  bool is_draining_ = false;
};

}  // namespace kvstore::store
