// WriteBehind gives colder tiers their copies: at once (write-through), when room gets short
// (write-back), or when the store is flushed.
//
// What a colder tier could not take (full, failing, still recovering) counts as clean meanwhile, so
// that it cannot fill memory with blocks that wait; it is offered again, a few blocks at a time,
// until it is taken or evicted.
//
// Confined to the core thread.
#pragma once

#include "absl/functional/any_invocable.h"
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
  // Starts a copy of a dirty block in the tier below `kind`. False: it cannot be saved now.
  bool Start(NodeId id, TierKind kind);
  // Copies every dirty block, then runs `done`: also when some could not be copied. One at a time.
  void Flush(absl::AnyInvocable<void()> done);
  // No move is in flight.
  void OnIdle();

 private:
  void KeepRoom(NodeId id, TierKind kind);
  void StartDirty();
  void ArmRetry();
  void Retry();

  const policy::PolicyOptions& policy_;
  Copies& copies_;
  Moves& moves_;
  Executor& executor_;
  const Clock& clock_;
  bool is_retry_armed_ = false;
  absl::AnyInvocable<void()> on_flushed_;
  NodeId next_to_flush_ = 0;
  bool has_flushed_any_ = false;  // in this round
};

}  // namespace kvstore::store
