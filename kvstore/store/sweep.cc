#include "kvstore/store/sweep.h"

namespace kvstore::store {
namespace {

constexpr NodeId kNodesAStep = 2048;  // about 0.2 ms of the core thread
constexpr absl::Duration kPauseBetweenRounds = absl::Milliseconds(100);

}  // namespace

void Sweep::Start() {
  if (is_running_) return;
  is_running_ = true;
  next_ = 0;
  executor_.Post([this] { Step(); });
}

void Sweep::Step() {
  const NodeId end = std::min(next_ + kNodesAStep, copies_.index().id_end());
  for (; next_ < end; ++next_) SweepNode(next_);
  if (next_ < copies_.index().id_end()) return executor_.Post([this] { Step(); });

  bool is_done = true;
  for (const NamespaceId old : namespaces_.OldEpochs()) {
    if (copies_.index().NumNodesIn(old) == 0) {
      namespaces_.Forget(old);
    } else {
      is_done = false;
    }
  }
  next_ = 0;
  is_running_ = !is_done;
  if (!is_done) executor_.PostAt(clock_.Now() + kPauseBetweenRounds, [this] { Step(); });
}

// Children may come after their parents in node order: parents then go as ghosts when the last
// child does.
void Sweep::SweepNode(NodeId id) {
  if (!copies_.index().IsLive(id)) return;
  const index::Node& node = copies_.index().node(id);
  if (node.holds > 0 || namespaces_.epoch(NamespaceId(node.ns)).is_current) return;
  copies_.Hold(id);  // the last drop must not erase the node under our feet
  for (const TierKind kind : kAllTiers) {
    if (copies_.Has(kind) && copies_.IsResident(id, kind))
      copies_.Drop(id, kind, DropReason::kCleared);
  }
  copies_.Unhold(id);
}

}  // namespace kvstore::store
