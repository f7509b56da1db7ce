#include "kvstore/store/room.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"

namespace kvstore::store {
namespace {

// How far down the eviction order one call looks for a block that can go. Held blocks cluster at
// the newest end, dirty ones are written behind within milliseconds: more than this means that the
// tier really is full.
constexpr uint32_t kScanMax = 256;
// Evictions for one page. More than one where the slots of a tenant's pools differ in size.
constexpr int kEvictionsMax = 64;
// The oldest leaves that tell which slab is worth least.
constexpr uint32_t kLeavesLookedAt = 64;
// Slabs, and slots in them, that are looked at for blocks that cannot go, the cheapest first.
constexpr size_t kCandidatesMax = 4;
constexpr uint32_t kSlotsCheckedMax = 4096;
// A tenant that found no slab worth taking looks again after this.
constexpr uint32_t kTicksBetweenTries = 2;
static_assert(kTicksBetweenTries <= Copies::kTicksPerSecond, "stays well below a second");
// How long a slab that is being emptied for a tenant is its: longer than emptying may take.
constexpr absl::Duration kClaimTime = absl::Seconds(4);
constexpr uint32_t kShrinkEvictionsAStep = 512;
constexpr absl::Duration kPauseInShrinking = absl::Milliseconds(50);

}  // namespace

Room::Room(Copies& copies, Executor& executor, const Clock& clock)
    : copies_(copies), executor_(executor), clock_(clock) {
  for (const TierKind kind : kAllTiers)
    in_[Pos(kind)].eviction = std::make_unique<SlabEviction>(kind, copies, executor, clock);
}

absl::StatusOr<PageId> Room::TakePage(TierKind kind, PoolId pool) {
  TenantTable& tenants = copies_.tenants();
  const TenantId tenant = tenants.tenant_of(pool);
  if (tenants.FreeSlotsUnderQuota(pool, kind) == 0 && !EvictForQuota(kind, pool)) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "tenant ", tenants.tenant(tenant).name, " has used up its quota of ",
        tenants.use(tenant, kind).quota_bytes, " bytes of ", std::string(tiers::TierName(kind))));
  }
  if (MustLeaveSlabs(kind, tenant) && !EvictOldest(kind, pool))
    return absl::ResourceExhaustedError("the free slab is another tenant's, who is owed it");
  tiers::Tier* tier = copies_.tier(kind);
  absl::StatusOr<PageId> page = tier->Reserve(pool);
  if (page.ok() || !absl::IsResourceExhausted(page.status())) return page;
  tenants.Activate(tenant, kind);
  for (int attempt = 0; attempt < kEvictionsMax && absl::IsResourceExhausted(page.status()) &&
                        MakeRoom(kind, pool, attempt);
       ++attempt) {
    page = tier->Reserve(pool);
  }
  tenants.Deactivate(tenant, kind);
  if (page.ok() && in_[Pos(kind)].claim && in_[Pos(kind)].claim->tenant == tenant &&
      !in_[Pos(kind)].eviction->is_running()) {
    in_[Pos(kind)].claim.reset();
  }
  if (absl::IsResourceExhausted(page.status()))
    return absl::ResourceExhaustedError(absl::StrCat(
        std::string(tiers::TierName(kind)), " is full, and nothing in it can be evicted now"));
  return page;
}

bool Room::EvictForQuota(TierKind kind, PoolId pool) {
  TenantTable& tenants = copies_.tenants();
  const TenantId tenant = tenants.tenant_of(pool);
  if (tenants.use(tenant, kind).quota_bytes < tenants.slot_bytes(pool)) return false;
  for (int i = 0; i < kEvictionsMax && tenants.FreeSlotsUnderQuota(pool, kind) == 0; ++i) {
    const std::optional<PoolId> oldest = OldestPool(kind, tenant, pool);
    if (!oldest || !EvictOldest(kind, *oldest)) break;
  }
  return tenants.FreeSlotsUnderQuota(pool, kind) > 0;
}

// Reserve() finds slots in the pool's own slabs first: whoever evicts a block of its own pool takes
// no free slab.
bool Room::MustLeaveSlabs(TierKind kind, TenantId tenant) {
  std::optional<Claim>& claim = in_[Pos(kind)].claim;
  if (!claim || claim->tenant == tenant) return false;
  if (!in_[Pos(kind)].eviction->is_running() && clock_.Now() > claim->until) {
    claim.reset();
    return false;
  }
  TenantTable& tenants = copies_.tenants();
  if (!tenants.use(tenant, kind).is_active) return false;
  tenants.Activate(claim->tenant, kind);
  const bool must = tenants.ExcessBytes(tenant, kind) > tenants.ExcessBytes(claim->tenant, kind);
  tenants.Deactivate(claim->tenant, kind);
  return must;
}

bool Room::MakeRoom(TierKind kind, PoolId pool, int attempt) {
  // The tier has room and cannot give it now: memory of another tenant is still being freed, or its
  // index is full.
  const bool is_room_coming = copies_.tier(kind)->FreeSlots(pool) > 0;
  if (!is_room_coming && TakeSlab(kind, pool)) return true;
  if (EvictOldest(kind, pool)) return true;
  if (!is_room_coming || attempt > 0) return false;
  const std::optional<PoolId> giver = GiverFor(kind, pool);
  return giver && EvictOldest(kind, *giver);
}

// True: the pool can have a slot now.
bool Room::TakeSlab(TierKind kind, PoolId pool) {
  InTier& in = in_[Pos(kind)];
  if (in.eviction->is_running()) return false;
  const std::optional<PoolId> giver = GiverFor(kind, pool);
  if (!giver) return false;
  TenantTable& tenants = copies_.tenants();
  const TenantId tenant = tenants.tenant_of(pool);
  uint32_t& next_try = tenants.use(tenant, kind).next_slab_try;
  const uint32_t now = copies_.Ticks();
  if (now < next_try) return false;
  const std::optional<Candidate> slab = CheapestSlab(kind, *giver);
  if (!slab || !IsWorth(kind, pool, *giver, slab->used * tenants.slot_bytes(*giver))) {
    next_try = now + kTicksBetweenTries;
    return false;
  }
  in.claim = Claim{.tenant = tenant, .until = clock_.Now() + kClaimTime};
  in.eviction->Start(slab->slab);
  return copies_.tier(kind)->FreeSlots(pool) > 0;
}

bool Room::IsWorth(TierKind kind, PoolId pool, PoolId giver, uint64_t price_bytes) {
  TenantTable& tenants = copies_.tenants();
  const TenantId asking = tenants.tenant_of(pool), giving = tenants.tenant_of(giver);
  if (asking == giving) return true;
  const int64_t difference = tenants.ExcessBytes(giving, kind) - tenants.ExcessBytes(asking, kind) -
                             static_cast<int64_t>(tenants.slot_bytes(pool));
  const bool has_nothing = tenants.use(asking, kind).used_bytes == 0;
  return difference > (has_nothing ? 0 : static_cast<int64_t>(price_bytes));
}

// Whose slab `pool` should get: the most of the other tenants over its share, else the tenant's own
// other pool if its blocks are older. None: the pool itself has to give.
std::optional<PoolId> Room::GiverFor(TierKind kind, PoolId pool) {
  TenantTable& tenants = copies_.tenants();
  const TenantId asking = tenants.tenant_of(pool);
  const TenantId most = tenants.MostOverShare(kind, asking, tenants.slot_bytes(pool));
  if (most != asking) {
    if (const auto oldest = OldestPool(kind, most, pool)) return oldest;
  }
  if (tenants.tenant(asking).pools.size() == 1) return std::nullopt;
  const std::optional<PoolId> own = OldestPool(kind, asking, pool);
  return own == pool ? std::nullopt : own;
}

std::optional<PoolId> Room::OldestPool(TierKind kind, TenantId tenant, PoolId preferred) const {
  const policy::LeafLru& order = copies_.order(kind);
  std::optional<PoolId> oldest;
  uint32_t oldest_ticks = 0;
  for (const PoolId pool : copies_.tenants().tenant(tenant).pools) {
    const NodeId leaf = order.Oldest(pool);
    if (leaf == index::kNoNode) continue;
    const uint32_t ticks = copies_.index().node(leaf).touched_at;
    if (!oldest || ticks < oldest_ticks || (ticks == oldest_ticks && pool == preferred)) {
      oldest = pool;
      oldest_ticks = ticks;
    }
  }
  return oldest;
}

// Cheapest: the fewest slots in use, not counting those of the oldest leaves, which would be next
// anyway. Of the cheapest few, the one with the least in the way.
std::optional<Room::Candidate> Room::CheapestSlab(TierKind kind, PoolId giver) const {
  const policy::LeafLru& order = copies_.order(kind);
  absl::flat_hash_map<uint32_t, uint32_t> oldest_in;  // leaves, by slab
  uint32_t looked_at = 0;
  for (NodeId leaf = order.Oldest(giver); leaf != index::kNoNode && looked_at < kLeavesLookedAt;
       leaf = order.NextNewer(leaf), ++looked_at) {
    ++oldest_in[copies_.page(leaf, kind).slab];
  }
  std::vector<Candidate> candidates;
  copies_.slabs(kind).ForEachSlabOf(giver, [&](const SlabMap::Slab& slab) {
    if (slab.quarantined > 0) return;
    const auto old = oldest_in.find(slab.id);
    candidates.push_back({.slab = slab.id,
                          .used = slab.used,
                          .score = slab.used - (old == oldest_in.end() ? 0 : old->second)});
  });
  const auto is_cheaper = [](const Candidate& a, const Candidate& b) {
    return std::pair(a.score, a.slab) < std::pair(b.score, b.slab);
  };
  const size_t num = std::min(candidates.size(), kCandidatesMax);
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<ptrdiff_t>(num),
                    candidates.end(), is_cheaper);
  std::optional<Candidate> best;
  uint32_t slots_checked = 0;
  for (size_t i = 0; i < num && (i == 0 || slots_checked < kSlotsCheckedMax); ++i) {
    const SlabMap::Slab& slab = *copies_.slabs(kind).Look(candidates[i].slab);
    candidates[i].blocked = CountBlocked(kind, slab);
    slots_checked += static_cast<uint32_t>(slab.blocks.size());
    if (!best || candidates[i].blocked < best->blocked) best = candidates[i];
    if (best->blocked == 0) break;
  }
  return best;
}

uint32_t Room::CountBlocked(TierKind kind, const SlabMap::Slab& slab) const {
  uint32_t evictable = 0;
  const size_t num = std::min<size_t>(slab.blocks.size(), kSlotsCheckedMax);
  for (size_t slot = 0; slot < num; ++slot) {
    const NodeId id = slab.blocks[slot];
    evictable += id != index::kNoNode && copies_.IsResident(id, kind) &&
                 copies_.index().node(id).holds == 0 && !copies_.IsDirty(id, kind);
  }
  return slab.used - std::min(evictable, slab.used);
}

// Makes room for one page. A block without a copy below is written there first; where that cannot
// be, and as a last resort, a block goes although a child of it lives on elsewhere: what is full of
// such blocks would otherwise stay full for ever.
bool Room::EvictOldest(TierKind kind, PoolId pool) {
  const policy::LeafLru& order = copies_.order(kind);
  NodeId next = order.Oldest(pool);
  NodeId orphaning = index::kNoNode;
  bool is_room_coming = false;
  for (uint32_t looked_at = 0; next != index::kNoNode && looked_at < kScanMax; ++looked_at) {
    const NodeId id = next;
    next = order.NextNewer(id);
    if (copies_.index().node(id).holds > 0) {
      copies_.GiveSecondChance(id, kind);
    } else if (copies_.IsDirty(id, kind) && copies_.StartWriteBack(id, kind)) {
      is_room_coming = true;
    } else if (copies_.CanEvict(id, kind)) {
      copies_.Drop(id, kind, DropReason::kEvicted);
      return true;
    } else if (orphaning == index::kNoNode) {
      orphaning = id;
    }
  }
  if (orphaning == index::kNoNode || is_room_coming) return false;
  copies_.Drop(orphaning, kind, DropReason::kEvicted);
  return true;
}

void Room::ShrinkToQuota(TenantId tenant, TierKind kind) {
  const std::pair<TenantId, TierKind> what{tenant, kind};
  if (copies_.tenants().use(tenant, kind).over_quota_bytes() == 0) return;
  if (std::find(shrinking_.begin(), shrinking_.end(), what) != shrinking_.end()) return;
  shrinking_.push_back(what);
  if (shrinking_.size() == 1) executor_.Post([this] { Shrink(); });
}

void Room::Shrink() {
  const auto [tenant, kind] = shrinking_.front();
  shrinking_.erase(shrinking_.begin());
  const bool has_more = ShrinkOne(tenant, kind);
  if (copies_.tenants().use(tenant, kind).over_quota_bytes() > 0)
    shrinking_.push_back({tenant, kind});
  if (shrinking_.empty()) return;
  if (has_more) return executor_.Post([this] { Shrink(); });
  executor_.PostAt(clock_.Now() + kPauseInShrinking, [this] { Shrink(); });
}

bool Room::ShrinkOne(TenantId tenant, TierKind kind) {
  for (uint32_t evicted = 0; evicted < kShrinkEvictionsAStep; ++evicted) {
    if (copies_.tenants().use(tenant, kind).over_quota_bytes() == 0) return true;
    const std::optional<PoolId> oldest = OldestPool(kind, tenant, PoolId(0));
    if (!oldest || !EvictOldest(kind, *oldest)) return false;
  }
  return true;
}

}  // namespace kvstore::store
