// The copies of blocks in tiers: the one place where index, eviction order and tiers change
// together.
//
// Confined to the core thread. Invariants (CheckInvariants): the eviction order of a tier has
// exactly the resident copies without a child in that tier; a page belongs to one copy; counts by
// namespace, tenant and tier agree with the index, with the slab maps and with the tiers.
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/page_trailer.h"
#include "kvstore/index/prefix_index.h"
#include "kvstore/policy/leaf_lru.h"
#include "kvstore/store/namespace_table.h"
#include "kvstore/store/slab_map.h"
#include "kvstore/store/store.h"
#include "kvstore/store/tenant_table.h"
#include "tiers/tier.h"

namespace kvstore::store {

using index::CopyState;
using index::NodeId;
inline constexpr TierKind kAllTiers[] = {TierKind::kGpu, TierKind::kDram, TierKind::kNvme};
constexpr size_t Pos(TierKind kind) { return static_cast<size_t>(kind); }

enum class DropReason { kEvicted, kLost, kCleared };
enum class Recency { kNewest, kOldest };

class Copies {
 public:
  Copies(const Store::Tiers& tiers, NamespaceTable& namespaces, TenantTable& tenants,
         const Clock& clock, uint64_t seed);

  // Told of a block that should be evicted but has no copy in a colder tier. True if a copy is
  // being made: it will be evictable later. False: it cannot be saved and may be dropped.
  void set_on_dirty_victim(std::function<bool(NodeId, TierKind)> on_dirty_victim) {
    on_dirty_victim_ = std::move(on_dirty_victim);
  }

  index::PrefixIndex& index() { return index_; }
  const index::PrefixIndex& index() const { return index_; }
  tiers::Tier* tier(TierKind kind) const { return tiers_[Pos(kind)]; }
  bool Has(TierKind kind) const { return tiers_[Pos(kind)] != nullptr; }
  PoolId PoolOf(NodeId id) const {
    return namespaces_.epoch(NamespaceId(index_.node(id).ns)).ns->pool;
  }
  // Makes the namespace's pool known to every tier. Errors: InvalidArgument, its pages are too
  // large.
  absl::Status OpenPools(const Namespace& ns);
  PageIdentity IdentityOf(NodeId id) const;
  CopyState state(NodeId id, TierKind kind) const { return index_.node(id).copies[Pos(kind)]; }
  bool IsResident(NodeId id, TierKind kind) const {
    return state(id, kind) == CopyState::kResident;
  }
  PageId page(NodeId id, TierKind kind) const { return index_.page(id, Pos(kind)); }
  PageLocation Locate(NodeId id, TierKind kind) const;

  // A page that the tier handed out (Room::TakePage) becomes the block's copy, on its tenant's
  // account.
  void BeginWrite(NodeId id, TierKind kind, PageId page);
  void Publish(NodeId id, TierKind kind, Recency recency);
  // Ends a write that will not be published, and gives its page back.
  void AbandonWrite(NodeId id, TierKind kind);
  // A page that is nobody's copy: it is on the account of its pool's tenant until it is given back.
  void Lend(TierKind kind, PoolId pool, PageId page);
  void GiveBack(TierKind kind, PoolId pool, PageId page);
  // Removes a resident copy. kLost: the slot is quarantined. The node is erased when nothing is
  // left of it.
  void Drop(NodeId id, TierKind kind, DropReason reason);
  // `now`: Ticks().
  void Touch(NodeId id, uint32_t now);

  // Forbids eviction of every copy of the block.
  void Hold(NodeId id) { ++index_.node(id).holds; }
  bool CanHold(NodeId id) const { return index_.node(id).holds < UINT16_MAX; }
  void Unhold(NodeId id);

  bool CanEvict(NodeId id, TierKind kind) const;
  // A colder tier exists, has no copy of it, and has not refused one.
  bool IsDirty(NodeId id, TierKind kind) const;
  // A colder tier could not take a copy: the block counts as clean until the mark is taken, or a
  // copy of it is published or dropped.
  void MarkUnwritable(NodeId id) { unwritable_.insert(id); }
  bool HasUnwritable() const { return !unwritable_.empty(); }
  // Takes the mark from up to `blocks_max` blocks, in the order of their ids from `from` on and then
  // from the first.
  std::vector<NodeId> TakeUnwritable(NodeId from, size_t blocks_max);
  bool HasColderTier(TierKind kind) const;
  bool HasColderCopy(NodeId id, TierKind kind) const;
  // Has a dirty block copied to the tier below. False: it cannot be saved and may be dropped.
  bool StartWriteBack(NodeId id, TierKind kind) { return on_dirty_victim_(id, kind); }
  // The colder tier that gets copies from `kind`, if there is one that serves.
  const tiers::Tier* ColderTier(TierKind kind) const;
  // Calls on_dirty_victim for up to `blocks_max` of the oldest dirty blocks of a pool.
  void WriteBackOldest(TierKind kind, PoolId pool, uint64_t blocks_max);

  // The order in which the blocks of a tier's pools are evicted.
  const policy::LeafLru& order(TierKind kind) const { return lru_[Pos(kind)]; }
  void GiveSecondChance(NodeId id, TierKind kind) { lru_[Pos(kind)].Touch(PoolOf(id), id); }
  const SlabMap& slabs(TierKind kind) const { return slabs_[Pos(kind)]; }
  TenantTable& tenants() { return tenants_; }
  const TenantTable& tenants() const { return tenants_; }

  // Present time in the unit of Node::touched_at.
  uint32_t Ticks() const;
  static constexpr double kTicksPerSecond = 16;

  TierCounters& counters(TierKind kind) { return counters_[Pos(kind)]; }
  const TierCounters& counters(TierKind kind) const { return counters_[Pos(kind)]; }
  StoreCounters& store_counters() { return store_counters_; }
  const StoreCounters& store_counters() const { return store_counters_; }
  uint64_t BytesIn(NamespaceId ns, TierKind kind) const;
  absl::Status CheckInvariants() const;

 private:
  bool IsLeafIn(NodeId id, TierKind kind) const;
  void RemoveCopy(NodeId id, TierKind kind);
  void PrefetchNextVictim(NodeId id, TierKind kind) const;
  uint64_t& PagesIn(NodeId id, TierKind kind);
  absl::Status CheckOrder(TierKind kind, uint64_t leaves, uint64_t resident) const;
  absl::Status CheckAccounts(TierKind kind) const;

  std::array<tiers::Tier*, tiers::kNumTierKinds> tiers_;
  NamespaceTable& namespaces_;
  TenantTable& tenants_;
  const Clock& clock_;
  const absl::Time start_;
  index::PrefixIndex index_;
  std::array<SlabMap, tiers::kNumTierKinds> slabs_;
  std::array<policy::LeafLru, tiers::kNumTierKinds> lru_;
  std::array<TierCounters, tiers::kNumTierKinds> counters_;
  StoreCounters store_counters_;
  absl::btree_set<NodeId> unwritable_;
  std::vector<std::array<uint64_t, tiers::kNumTierKinds>>
      pages_in_;  // [namespace id][tier], resident
  std::function<bool(NodeId, TierKind)> on_dirty_victim_;
};

}  // namespace kvstore::store
