#include "kvstore/store/tenant_admin.h"

#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/store/quota_record.h"

namespace kvstore::store {
namespace {

constexpr std::string_view kQuotaKeyPrefix = "quota/";  // of durable metadata; on disk

}  // namespace

std::vector<TenantRow> TenantAdmin::List() const {
  std::vector<TenantRow> rows;
  for (uint32_t i = 0; i < tenants_.all().size(); ++i) {
    const TenantId id(i);
    const Tenant& tenant = tenants_.tenant(id);
    TenantRow& row = rows.emplace_back(TenantRow{.name = tenant.name,
                                                 .tiers = {},
                                                 .sessions = tenant.sessions,
                                                 .leased_blocks = tenant.leased_blocks,
                                                 .reserved_blocks = tenant.reserved_blocks,
                                                 .moves = moves_.size_of(id)});
    for (const TierKind kind : kAllTiers) {
      if (!copies_.Has(kind)) continue;
      const TenantUse& use = tenants_.use(id, kind);
      row.tiers.push_back({.kind = kind,
                           .quota_bytes = use.quota_bytes,
                           .share_bytes = tenants_.ShareBytes(id, kind),
                           .used_bytes = use.used_bytes,
                           .reserved_bytes = use.used_bytes - use.resident_bytes,
                           .pages = use.pages,
                           .evicted_pages = use.evicted_pages});
    }
  }
  for (const auto& [id, session] : sessions_.all()) {
    rows[session.tenant.value()].leases += session.leases.size();
    rows[session.tenant.value()].reservations += session.reservations.size();
  }
  return rows;
}

void TenantAdmin::SetQuota(std::string_view tenant, TierKind tier, uint64_t bytes, QuotaLife life,
                           tiers::Tier::Done done) {
  if (!copies_.Has(tier)) {
    return done(absl::InvalidArgumentError(
        absl::StrCat("the daemon has no ", std::string(tiers::TierName(tier)), " tier")));
  }
  const absl::StatusOr<TenantId> id = tenants_.FindOrAdd(tenant);
  if (!id.ok()) return done(id.status());
  tenants_.SetQuota(*id, tier, bytes);
  tenants_.use(*id, tier).is_quota_set_here = true;
  room_.ShrinkToQuota(*id, tier);
  if (life == QuotaLife::kThisRun || durable_.empty()) return done(absl::OkStatus());
  QuotaRecord record;
  for (const TierKind kind : kAllTiers)
    record.bytes[Pos(kind)] = tenants_.use(*id, kind).quota_bytes;
  durable_.SaveMetadata(std::string(kQuotaKeyPrefix) + std::string(tenant), record.Encode(),
                        std::move(done));
}

std::optional<std::string_view> TenantAdmin::TenantOfKey(std::string_view key) {
  if (key.substr(0, kQuotaKeyPrefix.size()) != kQuotaKeyPrefix) return std::nullopt;
  return key.substr(kQuotaKeyPrefix.size());
}

void TenantAdmin::Restore(std::string_view tenant, std::string_view record) {
  const absl::StatusOr<QuotaRecord> quotas = QuotaRecord::Decode(record);
  if (!quotas.ok()) return;
  const absl::StatusOr<TenantId> id = tenants_.FindOrAdd(tenant);
  if (!id.ok()) return;
  for (const TierKind kind : kAllTiers) {
    if (tenants_.use(*id, kind).is_quota_set_here) continue;
    tenants_.SetQuota(*id, kind, quotas->bytes[Pos(kind)]);
  }
}

void TenantAdmin::EnforceQuotas() {
  for (uint32_t i = 0; i < tenants_.all().size(); ++i) {
    for (const TierKind kind : kAllTiers) room_.ShrinkToQuota(TenantId(i), kind);
  }
}

absl::Status TenantAdmin::CheckInvariants() const {
  std::vector<std::array<size_t, 3>> expected(tenants_.all().size());
  for (const auto& [id, session] : sessions_.all()) {
    auto& [sessions, leased, reserved] = expected[session.tenant.value()];
    ++sessions;
    reserved += session.reserved_blocks;
    for (const LeaseId lease : session.leases) leased += loads_.BlocksOf(lease);
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    const Tenant& tenant = tenants_.all()[i];
    if (expected[i] != std::array{tenant.sessions, tenant.leased_blocks, tenant.reserved_blocks}) {
      return absl::InternalError(
          absl::StrCat("tenant ", tenant.name, ": sessions, leased or reserved blocks are off"));
    }
  }
  return absl::OkStatus();
}

}  // namespace kvstore::store
