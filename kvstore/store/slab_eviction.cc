#include "kvstore/store/slab_eviction.h"

#include <utility>

namespace kvstore::store {
namespace {

// A step: 0.2 to 0.5 ms of the core thread.
constexpr uint32_t kSlotsAStep = 4096;
constexpr uint32_t kEvictionsAStep = 1024;
// Chains mostly lie in their slots in order, one way or the other: two passes take them leaf by
// leaf, two more most of the rest.
constexpr int kLeafPassesMax = 4;
// Leases last milliseconds and writes behind seconds at most; a slab with more than that in the way
// is not the right one.
constexpr absl::Duration kPatience = absl::Seconds(3);
constexpr absl::Duration kPauseBetweenPasses = absl::Milliseconds(20);

}  // namespace

void SlabEviction::Start(uint32_t slab) {
  is_running_ = true;
  slab_ = slab;
  use_ = copies_.slabs(kind_).Look(slab)->use;
  give_up_at_ = clock_.Now() + kPatience;
  next_ = 0;
  passes_ = 1;
  has_evicted_ = may_orphan_ = false;
  copies_.tier(kind_)->CloseSlab(slab);
  Step();
}

void SlabEviction::Step() {
  uint32_t looked_at = 0, evicted = 0;
  while (true) {
    const SlabMap::Slab* slab = copies_.slabs(kind_).Look(slab_);
    const bool is_free = slab == nullptr || slab->use != use_;
    if (is_free || slab->quarantined > 0) {
      copies_.counters(kind_).reclaimed_slabs += is_free;
      return End();
    }
    if (looked_at == kSlotsAStep || evicted == kEvictionsAStep) return PostStep();
    const uint32_t num_slots = static_cast<uint32_t>(slab->blocks.size());
    if (next_ >= num_slots) {
      if (!BeginNextPass()) return;
      continue;
    }
    const uint32_t slot = passes_ % 2 == 0 ? next_ : num_slots - 1 - next_;
    ++next_;
    ++looked_at;
    evicted += TryEvict(slab->blocks[slot]);
  }
}

void SlabEviction::PostStep() {
  executor_.Post([this] { Step(); });
}

bool SlabEviction::BeginNextPass() {
  const bool has_done_all_it_can = may_orphan_;
  ++passes_;
  next_ = 0;
  if (!std::exchange(has_evicted_, false) || passes_ > kLeafPassesMax) may_orphan_ = true;
  if (!has_done_all_it_can) return true;
  if (clock_.Now() >= give_up_at_) {
    copies_.tier(kind_)->ReopenSlab(slab_);
    End();
  } else {
    executor_.PostAt(clock_.Now() + kPauseBetweenPasses, [this] { Step(); });
  }
  return false;
}

bool SlabEviction::TryEvict(NodeId id) {
  if (id == index::kNoNode || !copies_.IsResident(id, kind_)) return false;
  if (copies_.index().node(id).holds > 0) return false;
  if (copies_.IsDirty(id, kind_) && copies_.StartWriteBack(id, kind_)) return false;
  if (!may_orphan_ && !copies_.CanEvict(id, kind_)) return false;
  copies_.Drop(id, kind_, DropReason::kEvicted);
  return has_evicted_ = true;
}

void SlabEviction::End() { is_running_ = false; }

}  // namespace kvstore::store
