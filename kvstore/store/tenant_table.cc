#include "kvstore/store/tenant_table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace kvstore::store {

absl::StatusOr<TenantId> TenantTable::FindOrAdd(std::string_view name) {
  if (const auto found = Find(name)) return *found;
  if (tenants_.size() >= tenants_max_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("there have been ", tenants_max_, " tenants since the start"));
  }
  const TenantId id(static_cast<uint32_t>(tenants_.size()));
  tenants_.emplace_back().name = std::string(name);
  by_name_[tenants_.back().name] = id;
  return id;
}

std::optional<TenantId> TenantTable::Find(std::string_view name) const {
  const auto it = by_name_.find(std::string(name));
  if (it == by_name_.end()) return std::nullopt;
  return it->second;
}

PoolId TenantTable::PoolOf(TenantId tenant_id, uint64_t slot_bytes) {
  Tenant& t = tenant(tenant_id);
  for (const PoolId pool : t.pools) {
    if (pools_[pool.value()].slot_bytes == slot_bytes) return pool;
  }
  const PoolId pool(static_cast<uint32_t>(pools_.size()));
  pools_.push_back({.tenant = tenant_id, .slot_bytes = slot_bytes});
  t.pools.push_back(pool);
  return pool;
}

void TenantTable::SetQuota(TenantId tenant_id, tiers::TierKind kind, uint64_t bytes) {
  use(tenant_id, kind).quota_bytes = bytes;
  is_split_stale_[static_cast<size_t>(kind)] = true;
}

void TenantTable::Activate(TenantId tenant_id, tiers::TierKind kind) {
  TenantUse& u = use(tenant_id, kind);
  if (u.is_active) return;
  u.is_active = true;
  active_[static_cast<size_t>(kind)].push_back(tenant_id);
  is_split_stale_[static_cast<size_t>(kind)] = true;
}

void TenantTable::Deactivate(TenantId tenant_id, tiers::TierKind kind) {
  TenantUse& u = use(tenant_id, kind);
  if (!u.is_active || u.used_bytes > 0) return;
  u.is_active = false;
  std::erase(active_[static_cast<size_t>(kind)], tenant_id);
  is_split_stale_[static_cast<size_t>(kind)] = true;
}

// Smallest quotas first: what they leave of an even part is for the others.
void TenantTable::SplitCapacity(size_t tier) {
  is_split_stale_[tier] = false;
  std::vector<TenantId>& active = active_[tier];
  const auto quota = [&](TenantId id) {
    const uint64_t bytes = tenant(id).tiers[tier].quota_bytes;
    return bytes == 0 ? UINT64_MAX : bytes;
  };
  std::sort(active.begin(), active.end(), [&](TenantId a, TenantId b) {
    return std::pair(quota(a), a) < std::pair(quota(b), b);
  });
  uint64_t left = capacity_bytes_[tier];
  for (size_t i = 0; i < active.size(); ++i) {
    const uint64_t share = std::min(quota(active[i]), left / (active.size() - i));
    tenant(active[i]).tiers[tier].share_bytes = share;
    left -= share;
  }
}

uint64_t TenantTable::ShareBytes(TenantId tenant_id, tiers::TierKind kind) {
  if (is_split_stale_[static_cast<size_t>(kind)]) SplitCapacity(static_cast<size_t>(kind));
  const TenantUse& u = use(tenant_id, kind);
  return u.is_active ? u.share_bytes : 0;
}

int64_t TenantTable::ExcessBytes(TenantId tenant_id, tiers::TierKind kind) {
  return static_cast<int64_t>(use(tenant_id, kind).used_bytes) -
         static_cast<int64_t>(ShareBytes(tenant_id, kind));
}

TenantId TenantTable::MostOverShare(tiers::TierKind kind, TenantId asking, uint64_t wanted_bytes) {
  TenantId most = asking;
  int64_t most_excess = ExcessBytes(asking, kind) + static_cast<int64_t>(wanted_bytes);
  for (const TenantId id : active_[static_cast<size_t>(kind)]) {
    if (id == asking) continue;
    const int64_t excess = ExcessBytes(id, kind);
    if (excess > most_excess || (excess == most_excess && most != asking && id < most)) {
      most = id;
      most_excess = excess;
    }
  }
  return most;
}

uint64_t TenantTable::FreeSlotsUnderQuota(PoolId pool, tiers::TierKind kind) const {
  const TenantUse& u = use(tenant_of(pool), kind);
  if (u.quota_bytes == 0) return UINT64_MAX;
  return u.quota_bytes > u.used_bytes ? (u.quota_bytes - u.used_bytes) / slot_bytes(pool) : 0;
}

}  // namespace kvstore::store
