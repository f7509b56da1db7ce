// Draining: no more saves, and a copy in a colder tier of every block that has none.
//
//   off --Start()--> writing --nothing is left to write--> on --Cancel()--> off
//                       \______________Cancel()______________________________/
//
// Rounds over all blocks, a few thousand a task so that loads go on, each followed by a wait until
// what it started is written; the last round is the one that starts nothing. Loads bring up blocks
// meanwhile and are not waited for.
//
// Confined to the core thread.
#pragma once

#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "kvstore/base/executor.h"
#include "kvstore/store/copies.h"
#include "kvstore/store/moves.h"
#include "kvstore/store/write_behind.h"

namespace kvstore::store {

class Drain {
 public:
  using Done = absl::AnyInvocable<void(absl::StatusOr<DrainResult>)>;
  Drain(Copies& copies, Moves& moves, WriteBehind& write_behind, Executor& executor)
      : copies_(copies), moves_(moves), write_behind_(write_behind), executor_(executor) {}

  // `done` runs once: when all is written that can be, also for what failed. A drain that is
  // under way is joined; one that has ended is done anew. Errors: Cancelled.
  void Start(Done done);
  // Saves are taken again; who waits for the drain is told Cancelled.
  void Cancel();
  bool is_on() const { return is_on_; }
  // What has been done so far; what only memory holds is known at the end.
  DrainResult progress() const;
  // The last write-behind move has ended.
  void OnWritten();

 private:
  static constexpr NodeId kNodesAStep = 4096;

  void BeginRound();
  void PostStep();
  void Step();
  bool Visit(NodeId id);
  void EndRound();

  Copies& copies_;
  Moves& moves_;
  WriteBehind& write_behind_;
  Executor& executor_;
  bool is_on_ = false;
  std::vector<Done> waiters_;  // not empty: writing
  uint64_t written_before_ = 0;
  NodeId next_ = 0;
  bool is_round_over_ = false;  // all blocks were visited; what was started is being written
  bool is_queue_full_ = false;
  bool is_step_posted_ = false;
  uint64_t started_in_round_ = 0;
  uint64_t memory_only_ = 0;  // met in this round
};

}  // namespace kvstore::store
