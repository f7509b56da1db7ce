#include "kvstore/store/tier_loss.h"

#include <algorithm>

#include "kvstore/base/log.h"
#include "tiers/tier.h"

namespace kvstore::store {
namespace {

constexpr NodeId kNodesAStep = 2048;  // about 1 ms of the core thread when all of them have a copy
constexpr absl::Duration kPauseBetweenRounds = absl::Milliseconds(100);

}  // namespace

void TierLoss::Start(TierKind kind) {
  Log(LogLevel::kError,
      "a tier's device has failed: its copies are dropped; restart to use it again",
      {{"tier", tiers::TierName(kind)}, {"cause", copies_.tier(kind)->degraded()}});
  next_ = 0;
  has_writing_ = false;
  executor_.Post([this, kind] { Step(kind); });
}

void TierLoss::Step(TierKind kind) {
  const NodeId end = std::min(next_ + kNodesAStep, copies_.index().id_end());
  for (; next_ < end; ++next_) LoseCopy(next_, kind);
  if (next_ < copies_.index().id_end()) return executor_.Post([this, kind] { Step(kind); });
  if (!std::exchange(has_writing_, false)) return;
  next_ = 0;
  executor_.PostAt(clock_.Now() + kPauseBetweenRounds, [this, kind] { Step(kind); });
}

void TierLoss::LoseCopy(NodeId id, TierKind kind) {
  if (!copies_.index().IsLive(id)) return;
  has_writing_ |= copies_.state(id, kind) == CopyState::kWriting;
  if (!copies_.IsResident(id, kind)) return;
  if (!copies_.CanHold(id)) {
    has_writing_ = true;  // later
    return;
  }
  copies_.Hold(id);  // the last drop must not erase the node under our feet
  copies_.Drop(id, kind, DropReason::kLost);
  copies_.Unhold(id);
}

}  // namespace kvstore::store
