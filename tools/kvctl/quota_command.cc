// quota.
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/units.h"
#include "tools/kvctl/commands.h"
#include "tools/kvctl/daemon_calls.h"
#include "tools/kvctl/report.h"
#include "tools/kvctl/tier_names.h"

namespace kvstore::kvctl {
namespace {

using nlohmann::json;

uint64_t OverBytes(const v1::TenantTier& tier) {
  const bool is_over = tier.quota_bytes() > 0 && tier.used_bytes() > tier.quota_bytes();
  return is_over ? tier.used_bytes() - tier.quota_bytes() : 0;
}

json TenantJson(const v1::TenantStatus& tenant) {
  json tiers = json::array();
  for (const v1::TenantTier& tier : tenant.tiers()) {
    tiers.push_back({{"tier", TierText(tier.tier())},
                     {"quota_bytes", tier.quota_bytes()},
                     {"share_bytes", tier.share_bytes()},
                     {"used_bytes", tier.used_bytes()},
                     {"reserved_bytes", tier.reserved_bytes()},
                     {"over_bytes", OverBytes(tier)},
                     {"pages", tier.pages()},
                     {"evicted_pages", tier.evicted_pages()}});
  }
  return {{"tenant", tenant.name()},
          {"tiers", tiers},
          {"sessions", tenant.sessions()},
          {"leases", tenant.leases()},
          {"leased_blocks", tenant.leased_blocks()},
          {"reservations", tenant.reservations()},
          {"reserved_blocks", tenant.reserved_blocks()},
          {"moves", tenant.moves()},
          {"calls", tenant.calls()},
          {"call_bytes", tenant.call_bytes()},
          {"calls_max", tenant.calls_max()}};
}

std::string QuotaText(uint64_t bytes) { return bytes == 0 ? "none" : FormatBytes(bytes); }

void PrintTenantsText(const v1::TenantsResponse& response) {
  Table table({{"TENANT"},
               {"TIER"},
               {"QUOTA", Align::kRight},
               {"SHARE", Align::kRight},
               {"USED", Align::kRight},
               {"OVER", Align::kRight},
               {"PAGES", Align::kRight},
               {"EVICTED", Align::kRight},
               {"SESSIONS", Align::kRight},
               {"LEASES", Align::kRight},
               {"MOVES", Align::kRight},
               {"CALLS", Align::kRight}});
  for (const v1::TenantStatus& tenant : response.tenants()) {
    for (const v1::TenantTier& tier : tenant.tiers()) {
      table.Add({Printable(tenant.name()), TierText(tier.tier()), QuotaText(tier.quota_bytes()),
                 FormatBytes(tier.share_bytes()), FormatBytes(tier.used_bytes()),
                 FormatBytes(OverBytes(tier)), FormatCount(tier.pages()),
                 FormatCount(tier.evicted_pages()), FormatCount(tenant.sessions()),
                 FormatCount(tenant.leases()), FormatCount(tenant.moves()),
                 FormatCount(tenant.calls())});
    }
  }
  PrintText(table.Render());
}

absl::StatusOr<ExitCode> Show(const Context& context) {
  v1::TenantsRequest request;
  request.set_tenant(context.arguments.tenant);
  ASSIGN_OR_RETURN(const v1::TenantsResponse response, context.daemon.Tenants(request));
  if (!context.arguments.json) {
    PrintTenantsText(response);
    return ExitCode::kDone;
  }
  json tenants = json::array();
  for (const v1::TenantStatus& tenant : response.tenants()) tenants.push_back(TenantJson(tenant));
  PrintJson({{"tenants", tenants}});
  return ExitCode::kDone;
}

absl::StatusOr<ExitCode> Set(const Context& context) {
  const Arguments& arguments = context.arguments;
  v1::SetQuotaRequest request;
  request.set_tenant(arguments.tenant);
  request.set_tier(TierOf(arguments.tier));
  if (arguments.bytes != "none") {
    ASSIGN_OR_RETURN(const uint64_t bytes, ParseBytes(arguments.bytes));
    if (bytes == 0)
      return absl::InvalidArgumentError("--bytes 0 would mean no quota; say --bytes none");
    request.set_bytes(bytes);
  }
  ASSIGN_OR_RETURN(const v1::SetQuotaResponse response, context.daemon.SetQuota(request));
  uint64_t over_bytes = 0;
  for (const v1::TenantTier& tier : response.tenant().tiers()) {
    if (tier.tier() == request.tier()) over_bytes = OverBytes(tier);
  }
  if (arguments.json) {
    json out = TenantJson(response.tenant());
    out["is_durable"] = response.is_durable();
    PrintJson(out);
    return ExitCode::kDone;
  }
  PrintText(absl::StrCat("quota of ", Printable(arguments.tenant), " in ", arguments.tier, ": ",
                         QuotaText(request.bytes()),
                         response.is_durable() ? "" : " (until the daemon stops: no nvme tier)",
                         "\n"));
  if (over_bytes > 0)
    PrintText(absl::StrCat(FormatBytes(over_bytes), " over it, being evicted, oldest first\n"));
  return ExitCode::kDone;
}

}  // namespace

absl::StatusOr<ExitCode> RunQuota(const Context& context) {
  if (!context.arguments.bytes.empty()) return Set(context);
  if (!context.arguments.tier.empty())
    return absl::InvalidArgumentError("--tier without --bytes; kvctl quota TENANT shows all tiers");
  return Show(context);
}

}  // namespace kvstore::kvctl
