#include "kvstore/store/copies.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"

namespace kvstore::store {
namespace {

// How far down the eviction order one call looks for dirty blocks.
constexpr uint32_t kScanMax = 256;
// How many older leaves a parent may pass when it becomes a leaf: those are of prefixes that nobody
// used since.
constexpr uint32_t kAgeWalkMax = 64;

}  // namespace

Copies::Copies(const Store::Tiers& tiers, NamespaceTable& namespaces, TenantTable& tenants,
               const Clock& clock, uint64_t seed)
    : tiers_{tiers.gpu, tiers.dram, tiers.nvme},
      namespaces_(namespaces),
      tenants_(tenants),
      clock_(clock),
      start_(clock.Now()),
      index_(seed, {tiers.gpu != nullptr, tiers.dram != nullptr, tiers.nvme != nullptr}) {}

uint32_t Copies::Ticks() const {
  return static_cast<uint32_t>(absl::ToDoubleSeconds(clock_.Now() - start_) * kTicksPerSecond);
}

absl::Status Copies::OpenPools(const Namespace& ns) {
  for (tiers::Tier* tier : tiers_) {
    if (tier == nullptr) continue;
    absl::Status opened = tier->OpenPool(
        ns.pool, {.tenant = ns.spec.tenant, .slot_bytes = ns.spec.shape.slot_bytes()});
    if (!opened.ok()) return opened;
  }
  return absl::OkStatus();
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
  const PoolId pool = PoolOf(id);
  slabs_[Pos(kind)].Take(page, pool, id);
  tenants_.Charge(pool, kind);
  index_.BeginWrite(id, Pos(kind), page);
  const NodeId parent = index_.node(id).parent;
  if (parent == index::kNoNode || !IsResident(parent, kind)) return;
  if (index_.NumChildrenIn(parent, Pos(kind)) == 1) lru_[Pos(kind)].Remove(pool, parent);
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
  if (kind != TierKind::kNvme && tier(kind)->durable() != nullptr)
    tier(kind)->NotePublished(page(id, kind), IdentityOf(id));
  unwritable_.erase(id);
  ++PagesIn(id, kind);
  const PoolId pool = PoolOf(id);
  TenantUse& use = tenants_.use(tenants_.tenant_of(pool), kind);
  use.resident_bytes += tenants_.slot_bytes(pool);
  ++use.pages;
  if (!IsLeafIn(id, kind)) return;
  if (recency == Recency::kNewest) {
    lru_[Pos(kind)].InsertNewest(pool, id);
  } else {
    lru_[Pos(kind)].InsertOldest(pool, id);
  }
}

void Copies::AbandonWrite(NodeId id, TierKind kind) {
  const PageId page = this->page(id, kind);
  const PoolId pool = PoolOf(id);
  RemoveCopy(id, kind);
  slabs_[Pos(kind)].Release(page);
  tenants_.Refund(pool, kind);
  tier(kind)->Release(page);
  index_.EraseIfUnused(id);
}

void Copies::Lend(TierKind kind, PoolId pool, PageId page) {
  slabs_[Pos(kind)].Take(page, pool, index::kNoNode);
  tenants_.Charge(pool, kind);
  tenants_.use(tenants_.tenant_of(pool), kind).lent_bytes += tenants_.slot_bytes(pool);
}

void Copies::GiveBack(TierKind kind, PoolId pool, PageId page) {
  tenants_.use(tenants_.tenant_of(pool), kind).lent_bytes -= tenants_.slot_bytes(pool);
  slabs_[Pos(kind)].Release(page);
  tenants_.Refund(pool, kind);
  tier(kind)->Release(page);
}

void Copies::Drop(NodeId id, TierKind kind, DropReason reason) {
  const PageId page = this->page(id, kind);
  const PoolId pool = PoolOf(id);
  TenantUse& use = tenants_.use(tenants_.tenant_of(pool), kind);
  if (IsLeafIn(id, kind)) lru_[Pos(kind)].Remove(pool, id);
  --PagesIn(id, kind);
  --use.pages;
  use.resident_bytes -= tenants_.slot_bytes(pool);
  unwritable_.erase(id);
  RemoveCopy(id, kind);
  PrefetchNextVictim(index_.node(id).parent, kind);
  if (reason == DropReason::kLost) {
    ++counters(kind).lost_pages;
    slabs_[Pos(kind)].Quarantine(page);
    tier(kind)->Quarantine(page);
  } else {
    counters(kind).evicted_pages += reason == DropReason::kEvicted;
    use.evicted_pages += reason == DropReason::kEvicted;
    slabs_[Pos(kind)].Release(page);
    tier(kind)->Release(page);
  }
  tenants_.Refund(pool, kind);
  if (!index_.node(id).IsResident()) ++store_counters_.dropped_blocks;
  index_.EraseIfUnused(id);
}

// Evictions run along chains, tail first: the parent is likely to be next.
void Copies::PrefetchNextVictim(NodeId id, TierKind kind) const {
  if (id == index::kNoNode) return;
  index_.PrefetchRemoval(id, Pos(kind));
  const NodeId parent = index_.node(id).parent;
  if (parent != index::kNoNode) lru_[Pos(kind)].Prefetch(parent);
}

void Copies::Touch(NodeId id, uint32_t now) {
  index::Node& n = index_.node(id);
  n.touched_at = now;
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

std::vector<NodeId> Copies::TakeUnwritable(NodeId from, size_t blocks_max) {
  std::vector<NodeId> taken;
  for (auto it = unwritable_.lower_bound(from);
       !unwritable_.empty() && taken.size() < blocks_max;) {
    if (it == unwritable_.end()) it = unwritable_.begin();
    taken.push_back(*it);
    it = unwritable_.erase(it);
  }
  return taken;
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
      const SlabMap::Slab* slab = slabs_[Pos(kind)].Look(p.slab);
      if (slab == nullptr || slab->pool != PoolOf(id) || slab->blocks[p.slot] != id) {
        return absl::InternalError(
            absl::StrCat("slot ", p.slab, "/", p.slot, " does not lead to its block"));
      }
    }
  }
  for (const NodeId id : unwritable_) {
    if (!index_.IsLive(id) || !index_.node(id).IsResident()) {
      return absl::InternalError(absl::StrCat("block ", id, " is gone and marked unwritable"));
    }
  }
  for (const TierKind kind : kAllTiers) {
    if (absl::Status s = CheckOrder(kind, leaves[Pos(kind)], resident[Pos(kind)]); !s.ok())
      return s;
    if (!Has(kind)) continue;
    if (absl::Status s = CheckAccounts(kind); !s.ok()) return s;
    if (absl::Status s = tier(kind)->CheckInvariants(); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status Copies::CheckOrder(TierKind kind, uint64_t leaves, uint64_t resident) const {
  uint64_t counted = 0;
  const uint64_t in_order = lru_[Pos(kind)].size();
  for (const auto& pages : pages_in_) counted += pages[Pos(kind)];
  if (in_order == leaves && counted == resident) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(std::string(tiers::TierName(kind)), ": ", resident,
                                          " resident, ", in_order, " in eviction order, ", counted,
                                          " counted"));
}

// Every account again from the index; all of them together from the tier.
absl::Status Copies::CheckAccounts(TierKind kind) const {
  std::vector<TenantUse> expected(tenants_.all().size());
  for (NodeId id = 0; id < index_.id_end(); ++id) {
    if (!index_.IsLive(id) || state(id, kind) == CopyState::kAbsent) continue;
    TenantUse& use = expected[tenants_.tenant_of(PoolOf(id)).value()];
    use.used_bytes += tenants_.slot_bytes(PoolOf(id));
    if (!IsResident(id, kind)) continue;
    use.resident_bytes += tenants_.slot_bytes(PoolOf(id));
    ++use.pages;
  }
  uint64_t all = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const Tenant& tenant = tenants_.all()[i];
    const TenantUse& use = tenant.tiers[Pos(kind)];
    all += use.used_bytes;
    if (use.used_bytes != expected[i].used_bytes + use.lent_bytes ||
        use.resident_bytes != expected[i].resident_bytes || use.pages != expected[i].pages) {
      return absl::InternalError(
          absl::StrCat("tenant ", tenant.name, " uses ", expected[i].used_bytes, " bytes of ",
                       std::string(tiers::TierName(kind)), " and ", use.lent_bytes,
                       " lent; its account says ", use.used_bytes));
    }
  }
  if (const uint64_t used = tier(kind)->stats().used_bytes; all != used) {
    return absl::InternalError(absl::StrCat(std::string(tiers::TierName(kind)), " has ", used,
                                            " bytes in use, all tenants together ", all));
  }
  return absl::OkStatus();
}

}  // namespace kvstore::store
