#include "kvstore/store/copies.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"

namespace kvstore::store {
namespace {

// How far down the eviction order one call looks for a block that can go. Held blocks cluster at
// the newest end, dirty ones are written behind within milliseconds: more than this means that the
// tier really is full.
constexpr uint32_t kScanMax = 256;
// Blocks evicted from another pool in one call, to empty a slab of its.
constexpr int kForeignEvictionsMax = 64;
// How many older leaves a parent may pass when it becomes a leaf: those are of prefixes that nobody
// used since.
constexpr uint32_t kAgeWalkMax = 64;

}  // namespace

Copies::Copies(const Store::Tiers& tiers, NamespaceTable& namespaces, const Clock& clock,
               uint64_t seed)
    : tiers_{tiers.gpu, tiers.dram, tiers.nvme},
      namespaces_(namespaces),
      clock_(clock),
      start_(clock.Now()),
      index_(seed, {tiers.gpu != nullptr, tiers.dram != nullptr, tiers.nvme != nullptr}) {}

uint32_t Copies::Ticks() const {
  return static_cast<uint32_t>(absl::ToDoubleSeconds(clock_.Now() - start_) * kTicksPerSecond);
}

PageIdentity Copies::IdentityOf(NodeId id) const {
  const index::Node& n = index_.node(id);
  const Epoch& epoch = namespaces_.epoch(NamespaceId(n.ns));
  PageIdentity identity;
  identity.shape = epoch.ns->spec.shape;
  identity.fingerprint = epoch.ns->fingerprint;
  identity.epoch = epoch.epoch;
  identity.hash = n.hash;
  if (n.parent != index::kNoNode) identity.parent = index_.node(n.parent).hash;
  identity.block_index = n.block_index;
  identity.page_checksum = n.page_checksum;
  return identity;
}

PageLocation Copies::Locate(NodeId id, TierKind kind) const {
  PageLocation location{
      .tier = kind, .page = page(id, kind), .page_checksum = index_.node(id).page_checksum};
  if (const auto region = tier(kind)->Address(location.page)) location.address = region->data;
  return location;
}

uint64_t& Copies::PagesIn(NodeId id, TierKind kind) {
  const uint16_t ns = index_.node(id).ns;
  if (pages_in_.size() <= ns) pages_in_.resize(ns + 1);
  return pages_in_[ns][Pos(kind)];
}

uint64_t Copies::BytesIn(NamespaceId ns, TierKind kind) const {
  if (ns.value() >= pages_in_.size()) return 0;
  return pages_in_[ns.value()][Pos(kind)] * namespaces_.epoch(ns).ns->spec.shape.slot_bytes();
}

bool Copies::IsLeafIn(NodeId id, TierKind kind) const {
  return index_.NumChildrenIn(id, Pos(kind)) == 0;
}

// A resident parent leaves the eviction order with its first child in the tier, and is back in it
// with its last one gone.
void Copies::BeginWrite(NodeId id, TierKind kind, PageId page) {
  index_.BeginWrite(id, Pos(kind), page);
  const NodeId parent = index_.node(id).parent;
  if (parent == index::kNoNode || !IsResident(parent, kind)) return;
  if (index_.NumChildrenIn(parent, Pos(kind)) == 1) lru_[Pos(kind)].Remove(PoolOf(parent), parent);
}

void Copies::RemoveCopy(NodeId id, TierKind kind) {
  index_.Remove(id, Pos(kind));
  const NodeId parent = index_.node(id).parent;
  if (parent == index::kNoNode || !IsResident(parent, kind) || !IsLeafIn(parent, kind)) return;
  const uint32_t touched_at = index_.node(parent).touched_at;
  lru_[Pos(kind)].InsertByAge(PoolOf(parent), parent, kAgeWalkMax, [&](uint32_t other) {
    return index_.node(other).touched_at < touched_at;
  });
}

void Copies::Publish(NodeId id, TierKind kind, Recency recency) {
  index_.Publish(id, Pos(kind));
  unwritable_.erase(id);
  ++PagesIn(id, kind);
  if (!IsLeafIn(id, kind)) return;
  if (recency == Recency::kNewest) {
    lru_[Pos(kind)].InsertNewest(PoolOf(id), id);
  } else {
    lru_[Pos(kind)].InsertOldest(PoolOf(id), id);
  }
}

void Copies::AbandonWrite(NodeId id, TierKind kind) {
  const PageId page = this->page(id, kind);
  RemoveCopy(id, kind);
  tier(kind)->Release(page);
  index_.EraseIfUnused(id);
}

void Copies::Drop(NodeId id, TierKind kind, DropReason reason) {
  const PageId page = this->page(id, kind);
  if (IsLeafIn(id, kind)) lru_[Pos(kind)].Remove(PoolOf(id), id);
  --PagesIn(id, kind);
  unwritable_.erase(id);
  RemoveCopy(id, kind);
  if (reason == DropReason::kLost) {
    ++counters(kind).lost_pages;
    tier(kind)->Quarantine(page);
  } else {
    if (reason == DropReason::kEvicted) ++counters(kind).evicted_pages;
    tier(kind)->Release(page);
  }
  if (!index_.node(id).IsResident()) ++store_counters_.dropped_blocks;
  index_.EraseIfUnused(id);
}

void Copies::Touch(NodeId id) {
  index::Node& n = index_.node(id);
  n.touched_at = Ticks();
  for (const TierKind kind : kAllTiers) {
    if (n.copies[Pos(kind)] == CopyState::kResident && IsLeafIn(id, kind))
      lru_[Pos(kind)].Touch(PoolOf(id), id);
  }
}

void Copies::Unhold(NodeId id) {
  --index_.node(id).holds;
  index_.EraseIfUnused(id);
}

bool Copies::CanEvict(NodeId id, TierKind kind) const {
  const index::Node& n = index_.node(id);
  if (n.holds > 0 || !IsLeafIn(id, kind)) return false;
  bool is_last = true;
  for (const TierKind other : kAllTiers)
    is_last &= other == kind || n.copies[Pos(other)] != CopyState::kResident;
  return !is_last || index_.NumChildrenAnywhere(id) == 0;
}

const tiers::Tier* Copies::ColderTier(TierKind kind) const {
  for (size_t t = Pos(kind) + 1; t < tiers_.size(); ++t) {
    if (tiers_[t] != nullptr)
      return tiers_[t]->state() == tiers::TierState::kServing ? tiers_[t] : nullptr;
  }
  return nullptr;
}

bool Copies::IsDirty(NodeId id, TierKind kind) const {
  return ColderTier(kind) != nullptr && !unwritable_.contains(id) && !HasColderCopy(id, kind);
}

bool Copies::HasColderTier(TierKind kind) const {
  return std::any_of(tiers_.begin() + Pos(kind) + 1, tiers_.end(),
                     [](const tiers::Tier* tier) { return tier != nullptr; });
}

bool Copies::HasColderCopy(NodeId id, TierKind kind) const {
  for (size_t t = Pos(kind) + 1; t < tiers_.size(); ++t) {
    if (index_.node(id).copies[t] == CopyState::kResident) return true;
  }
  return false;
}

std::vector<NodeId> Copies::TakeUnwritable(size_t blocks_max) {
  std::vector<NodeId> taken;
  while (!unwritable_.empty() && taken.size() < blocks_max)
    taken.push_back(unwritable_.extract(unwritable_.begin()).value());
  return taken;
}

absl::StatusOr<PageId> Copies::TakePage(TierKind kind, PoolId pool) {
  absl::StatusOr<PageId> page = tier(kind)->Reserve(pool);
  while (!page.ok() && absl::IsResourceExhausted(page.status()) && EvictFor(kind, pool))
    page = tier(kind)->Reserve(pool);
  return page;
}

// Memory goes to the pool that uses it: while another pool's oldest block is older than ours, that
// one gives.
bool Copies::EvictFor(TierKind kind, PoolId pool) {
  const PoolId oldest = PoolWithOldestBlock(kind, pool);
  if (oldest != pool) {
    for (int i = 0; i < kForeignEvictionsMax && EvictOldest(kind, oldest); ++i) {
      if (tier(kind)->FreeSlots(pool) > 0) return true;
    }
  }
  return EvictOldest(kind, pool);
}

PoolId Copies::PoolWithOldestBlock(TierKind kind, PoolId fallback) const {
  const policy::LeafLru& lru = lru_[Pos(kind)];
  PoolId oldest = fallback;
  uint32_t oldest_ticks = UINT32_MAX;
  for (const auto& [pool, list] : lru.pools()) {
    const NodeId node = lru.Oldest(pool);
    if (node == index::kNoNode) continue;
    const uint32_t ticks = index_.node(node).touched_at;
    // Ties go to the pool that asks, then to the lowest id: the order of the map must not matter.
    const bool wins_tie = pool == fallback || (oldest != fallback && pool < oldest);
    if (ticks < oldest_ticks || (ticks == oldest_ticks && wins_tie)) {
      oldest_ticks = ticks;
      oldest = pool;
    }
  }
  return oldest;
}

// Makes room for one page. A block without a copy below is written there first; where that cannot
// be, and as a last resort, a block goes although a child of it lives on elsewhere: what is full of
// such blocks would otherwise stay full for ever.
bool Copies::EvictOldest(TierKind kind, PoolId pool) {
  policy::LeafLru& lru = lru_[Pos(kind)];
  NodeId next = lru.Oldest(pool);
  NodeId orphaning = index::kNoNode;
  bool is_room_coming = false;
  for (uint32_t looked_at = 0; next != index::kNoNode && looked_at < kScanMax; ++looked_at) {
    const NodeId id = next;
    next = lru.NextNewer(id);
    if (index_.node(id).holds > 0) {
      lru.Touch(pool, id);  // second chance
    } else if (IsDirty(id, kind) && on_dirty_victim_(id, kind)) {
      is_room_coming = true;
    } else if (CanEvict(id, kind)) {
      Drop(id, kind, DropReason::kEvicted);
      return true;
    } else if (orphaning == index::kNoNode) {
      orphaning = id;
    }
  }
  if (orphaning == index::kNoNode || is_room_coming) return false;
  Drop(orphaning, kind, DropReason::kEvicted);
  return true;
}

void Copies::WriteBackOldest(TierKind kind, PoolId pool, uint64_t blocks_max) {
  const policy::LeafLru& lru = lru_[Pos(kind)];
  NodeId leaf = lru.Oldest(pool);
  for (uint32_t looked_at = 0; leaf != index::kNoNode && looked_at < kScanMax;
       leaf = lru.NextNewer(leaf)) {
    // The parents are the victims that follow.
    for (NodeId id = leaf; id != index::kNoNode && IsResident(id, kind) && looked_at < kScanMax;
         id = index_.node(id).parent) {
      ++looked_at;
      if (index_.node(id).holds > 0 || !IsDirty(id, kind)) continue;
      if (blocks_max-- == 0 || !on_dirty_victim_(id, kind)) return;
    }
  }
}

absl::Status Copies::CheckInvariants() const {
  if (absl::Status s = index_.CheckInvariants(); !s.ok()) return s;
  std::array<uint64_t, tiers::kNumTierKinds> resident{}, leaves{};
  std::array<absl::flat_hash_set<std::pair<uint32_t, uint32_t>>, tiers::kNumTierKinds> slots;
  for (NodeId id = 0; id < index_.id_end(); ++id) {
    if (!index_.IsLive(id)) continue;
    for (const TierKind kind : kAllTiers) {
      if (state(id, kind) == CopyState::kAbsent) continue;
      resident[Pos(kind)] += IsResident(id, kind);
      leaves[Pos(kind)] += IsResident(id, kind) && IsLeafIn(id, kind);
      const PageId p = page(id, kind);
      if (!slots[Pos(kind)].insert({p.slab, p.slot}).second) {
        return absl::InternalError(
            absl::StrCat("slot ", p.slab, "/", p.slot, " belongs to two blocks"));
      }
    }
  }
  for (const NodeId id : unwritable_) {
    if (!index_.IsLive(id) || !index_.node(id).IsResident()) {
      return absl::InternalError(absl::StrCat("block ", id, " is gone and marked unwritable"));
    }
  }
  for (const TierKind kind : kAllTiers) {
    uint64_t in_order = 0, counted = 0;
    for (const auto& [pool, list] : lru_[Pos(kind)].pools()) in_order += lru_[Pos(kind)].size(pool);
    for (const auto& pages : pages_in_) counted += pages[Pos(kind)];
    if (in_order != leaves[Pos(kind)] || counted != resident[Pos(kind)]) {
      return absl::InternalError(absl::StrCat(std::string(tiers::TierName(kind)), ": ",
                                              resident[Pos(kind)], " resident, ", in_order,
                                              " in eviction order, ", counted, " counted"));
    }
    if (!Has(kind)) continue;
    if (absl::Status s = tier(kind)->CheckInvariants(); !s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace kvstore::store
