// What a tier held is gone (its device has failed): its copies leave the index, a few thousand
// nodes at a time beside other work. Until a copy has left, the tier's state keeps it from being
// read.
//
// Confined to the core thread.
#pragma once

#include "kvstore/base/executor.h"
#include "kvstore/store/copies.h"

namespace kvstore::store {

class TierLoss {
 public:
  TierLoss(Copies& copies, Executor& executor, const Clock& clock)
      : copies_(copies), executor_(executor), clock_(clock) {}
  // Goes on until the tier has no copy: those being written end first. Requires: the tier is
  // kFailed and stays so.
  void Start(TierKind kind);

 private:
  void Step(TierKind kind);
  void LoseCopy(NodeId id, TierKind kind);

  Copies& copies_;
  Executor& executor_;
  const Clock& clock_;
  NodeId next_ = 0;
  bool has_writing_ = false;  // seen in this round
};

}  // namespace kvstore::store
