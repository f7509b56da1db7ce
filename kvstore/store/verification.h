// Reading pages back to check them: what `kvctl verify` asks for, and what happens when a reader
// reports bad bytes.
//
// A check reads the copy through its tier into a scratch page in DRAM, where the tier compares
// every checksum. A copy that fails is dropped, its slot quarantined.
//
// Confined to the core thread.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "kvstore/base/executor.h"
#include "kvstore/store/copies.h"
#include "kvstore/store/moves.h"

namespace kvstore::store {

class Verification {
 public:
  using Done = absl::AnyInvocable<void(absl::StatusOr<VerifyResult>)>;
  Verification(Copies& copies, Room& room, Moves& moves, Executor& executor, const Clock& clock,
               absl::Duration deadline)
      : copies_(copies),
        room_(room),
        moves_(moves),
        executor_(executor),
        clock_(clock),
        deadline_(deadline) {}

  // Checks one copy; drops it if it is bad. Requires: resident. `done`: OK; DataLoss, the copy was
  // bad and is gone; ResourceExhausted / Unavailable / DeadlineExceeded, it could not be checked
  // now.
  void Check(NodeId id, TierKind kind, absl::AnyInvocable<void(absl::Status)> done);
  // Checks all copies of `kind` (nullopt: of every tier), a few at a time. One run at a time.
  // Errors: FailedPrecondition.
  void CheckAll(std::optional<TierKind> kind, VerifyMode mode, Done done);
  size_t in_flight() const { return in_flight_; }

 private:
  static constexpr size_t kChecksInFlight = 8;
  // Nodes looked at before other work gets its turn.
  static constexpr size_t kNodesAStep = 1024;
  struct Run {
    std::vector<TierKind> tiers;
    VerifyMode mode{};
    Done done;
    VerifyResult result;
    size_t tier = 0;  // position in `tiers`
    NodeId next = 0;
    size_t in_flight = 0;
    bool is_step_posted = false;
    absl::Status failure;
  };

  void Step();
  void PostStep();
  void OnChecked(NodeId id, TierKind kind, const absl::Status& status);
  void Repair(NodeId id, TierKind kind);

  Copies& copies_;
  Room& room_;
  Moves& moves_;
  Executor& executor_;
  const Clock& clock_;
  const absl::Duration deadline_;
  size_t in_flight_ = 0;
  std::unique_ptr<Run> run_;
};

}  // namespace kvstore::store
