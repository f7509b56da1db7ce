// Room finds a page in a tier, and decides who gives when there is none.
//
// 1. A tenant that has used up its quota makes room itself, with its oldest leaves.
// 2. A free slot is taken, whoever's share it is part of.
// 3. Else the tenant most over its share gives. If that is the one who asks, its oldest leaf goes.
//    If it is another one, a slab has to change hands (memory never mixes tenants): the cheapest of
//    its slabs is emptied, if the giver stays better off than the one who asks. Thus nobody below
//    its share loses a block to somebody above his, and nothing swings back and forth.
// 4. Among pools of one tenant, that with the older blocks gives.
//
// A tenant that has nothing in the tier may take a slab whatever the price, as long as the giver is
// more over its share: with more tenants than slabs they take turns.
//
// Confined to the core thread; a call takes at most about 1 ms of it.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/base/executor.h"
#include "kvstore/store/copies.h"
#include "kvstore/store/slab_eviction.h"

namespace kvstore::store {

class Room {
 public:
  Room(Copies& copies, Executor& executor, const Clock& clock);

  // A page of `kind`, evicting if needed. The caller makes it a copy (Copies::BeginWrite) or lends
  // it (Copies::Lend) before anything else happens. Errors: ResourceExhausted, nothing can be
  // evicted now, or the quota is used up by what cannot be; what the tier says.
  absl::StatusOr<PageId> TakePage(TierKind kind, PoolId pool);
  // Evicts beside other work, until the tenant uses no more than its quota. What is held is waited
  // for.
  void ShrinkToQuota(TenantId tenant, TierKind kind);

 private:
  // A slab is being emptied, or was, for this tenant.
  struct Claim {
    TenantId tenant;
    absl::Time until;
  };
  struct InTier {
    std::unique_ptr<SlabEviction> eviction;
    std::optional<Claim> claim;
  };
  struct Candidate {
    uint32_t slab = 0;
    uint32_t used = 0;
    uint32_t score = 0;    // slots whose blocks are not among the oldest: what emptying it costs
    uint32_t blocked = 0;  // slots that cannot be emptied at once
  };

  bool EvictForQuota(TierKind kind, PoolId pool);
  bool MakeRoom(TierKind kind, PoolId pool, int attempt);
  bool TakeSlab(TierKind kind, PoolId pool);
  bool IsWorth(TierKind kind, PoolId pool, PoolId giver, uint64_t price_bytes);
  std::optional<PoolId> GiverFor(TierKind kind, PoolId pool);
  // True: the caller has to make room in slabs of its own, because a free slab is somebody else's.
  bool MustLeaveSlabs(TierKind kind, TenantId tenant);
  std::optional<Candidate> CheapestSlab(TierKind kind, PoolId giver) const;
  uint32_t CountBlocked(TierKind kind, const SlabMap::Slab& slab) const;
  // The tenant's pool whose oldest leaf is the oldest; of equals `preferred`, then the first.
  std::optional<PoolId> OldestPool(TierKind kind, TenantId tenant, PoolId preferred) const;
  bool EvictOldest(TierKind kind, PoolId pool);
  void Shrink();
  // True: there is more to do at once.
  bool ShrinkOne(TenantId tenant, TierKind kind);

  Copies& copies_;
  Executor& executor_;
  const Clock& clock_;
  std::array<InTier, tiers::kNumTierKinds> in_;
  std::vector<std::pair<TenantId, TierKind>> shrinking_;
};

}  // namespace kvstore::store
