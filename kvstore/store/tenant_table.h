// Who uses how much of what, and how much is fair: tenants, their pools, their accounts, their
// quotas and shares.
//
// A tenant's *share* of a tier is the tier's capacity split evenly among the tenants that have
// pages there; a tenant whose quota is smaller has its quota as share, and what it leaves is split
// among the others. Its *excess* is what it uses beyond that; negative below. A quota is a cap, a
// share is what nobody who is above his own can take away.
//
// Confined to the core thread. Invariant (Copies::CheckInvariants): accounts are what the index and
// the tiers say, to the byte.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "kvstore/base/strong_id.h"
#include "tiers/tier.h"

namespace kvstore::store {

using TenantId = StrongId<struct TenantIdTag, uint32_t>;

// What a tenant has in one tier. Bytes are slots, trailer included.
struct TenantUse {
  uint64_t quota_bytes = 0;  // 0: none
  uint64_t used_bytes = 0;   // resident, being written, or lent for a check
  uint64_t resident_bytes = 0;
  uint64_t lent_bytes = 0;  // scratch pages of Verification
  uint64_t pages = 0;       // resident
  uint64_t evicted_pages = 0;
  bool is_active = false;          // takes part in the split
  bool is_quota_set_here = false;  // in this run: what a durable tier remembers is older
  uint64_t share_bytes = 0;        // while active, and up to date
  uint32_t next_slab_try = 0;      // Copies::Ticks(); Room

  uint64_t over_quota_bytes() const {
    return quota_bytes > 0 && used_bytes > quota_bytes ? used_bytes - quota_bytes : 0;
  }
};

struct Tenant {
  std::string name;
  std::vector<PoolId> pools;
  std::array<TenantUse, tiers::kNumTierKinds> tiers;
  size_t sessions = 0;
  size_t leased_blocks = 0;    // of all its leases
  size_t reserved_blocks = 0;  // of all its reservations
};

class TenantTable {
 public:
  // `capacity_bytes`: of each tier, 0 where there is none.
  TenantTable(size_t tenants_max, std::array<uint64_t, tiers::kNumTierKinds> capacity_bytes)
      : tenants_max_(tenants_max), capacity_bytes_(capacity_bytes) {}

  // Errors: ResourceExhausted, tenants_max.
  absl::StatusOr<TenantId> FindOrAdd(std::string_view name);
  std::optional<TenantId> Find(std::string_view name) const;
  // The tenant's pool of pages with that slot size: one and the same for ever.
  PoolId PoolOf(TenantId tenant, uint64_t slot_bytes);

  TenantId tenant_of(PoolId pool) const { return pools_[pool.value()].tenant; }
  uint64_t slot_bytes(PoolId pool) const { return pools_[pool.value()].slot_bytes; }
  Tenant& tenant(TenantId id) { return tenants_[id.value()]; }
  const Tenant& tenant(TenantId id) const { return tenants_[id.value()]; }
  TenantUse& use(TenantId id, tiers::TierKind kind) {
    return tenants_[id.value()].tiers[static_cast<size_t>(kind)];
  }
  const TenantUse& use(TenantId id, tiers::TierKind kind) const {
    return tenants_[id.value()].tiers[static_cast<size_t>(kind)];
  }
  // In order of their ids.
  const std::vector<Tenant>& all() const { return tenants_; }
  size_t num_pools() const { return pools_.size(); }

  // One page of `pool` is in use from here on / not any more.
  void Charge(PoolId pool, tiers::TierKind kind) {
    TenantUse& u = use(tenant_of(pool), kind);
    u.used_bytes += slot_bytes(pool);
    if (!u.is_active) Activate(tenant_of(pool), kind);
  }
  void Refund(PoolId pool, tiers::TierKind kind) {
    TenantUse& u = use(tenant_of(pool), kind);
    u.used_bytes -= slot_bytes(pool);
    if (u.used_bytes == 0) Deactivate(tenant_of(pool), kind);
  }
  void SetQuota(TenantId tenant, tiers::TierKind kind, uint64_t bytes);

  // A tenant that wants its first page takes part in the split before it has one.
  void Activate(TenantId tenant, tiers::TierKind kind);
  // Ignored while it has pages.
  void Deactivate(TenantId tenant, tiers::TierKind kind);
  // 0 while not active.
  uint64_t ShareBytes(TenantId tenant, tiers::TierKind kind);
  // Used beyond its share. Requires: active.
  int64_t ExcessBytes(TenantId tenant, tiers::TierKind kind);
  // The active tenant with the largest excess, `wanted_bytes` added to what `asking` uses. Of
  // equals `asking`, then the lowest id. O(active tenants), and never more of those than slabs.
  // Requires: `asking` is active.
  TenantId MostOverShare(tiers::TierKind kind, TenantId asking, uint64_t wanted_bytes);
  // Slots that the quota leaves to `pool`; UINT64_MAX without a quota.
  uint64_t FreeSlotsUnderQuota(PoolId pool, tiers::TierKind kind) const;

 private:
  struct Pool {
    TenantId tenant;
    uint64_t slot_bytes = 0;
  };
  void SplitCapacity(size_t tier);

  const size_t tenants_max_;
  const std::array<uint64_t, tiers::kNumTierKinds> capacity_bytes_;
  std::vector<Tenant> tenants_;  // [TenantId]
  std::vector<Pool> pools_;      // [PoolId]
  absl::flat_hash_map<std::string, TenantId> by_name_;
  std::array<std::vector<TenantId>, tiers::kNumTierKinds> active_;
  std::array<bool, tiers::kNumTierKinds> is_split_stale_{};
};

}  // namespace kvstore::store
