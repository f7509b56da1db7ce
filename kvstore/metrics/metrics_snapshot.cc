#include "kvstore/metrics/metrics_snapshot.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

#include "kvstore/base/metrics_page.h"

namespace kvstore::metrics {
namespace {

using store::StoreStatus;
using store::TierRow;

constexpr auto kCounter = MetricType::kCounter;
constexpr auto kGauge = MetricType::kGauge;
constexpr auto kHistogram = MetricType::kHistogram;

std::string_view StateName(tiers::TierState state) {
  switch (state) {
    case tiers::TierState::kServing:
      return "serving";
    case tiers::TierState::kReadOnly:
      return "read-only";
    case tiers::TierState::kFailed:
      break;
  }
  return "failed";
}

// One family over all tiers.
template <typename Value>
void ByTier(MetricsPage* page, const StoreStatus& status, std::string_view name, MetricType type,
            std::string_view help, Value value) {
  page->Family(name, type, help);
  for (const TierRow& row : status.tiers)
    page->Sample({{"tier", tiers::TierName(row.kind)}}, value(row));
}

void WriteBuild(MetricsPage* page, const MetricsSnapshot& snapshot) {
  page->Family("kvstore_daemon_build_info", kGauge, "Always 1; the labels tell the build.");
  page->Sample({{"version", snapshot.version}, {"commit", snapshot.commit}}, uint64_t{1});
  page->Family("kvstore_daemon_uptime_seconds", kGauge, "Time since the daemon started.");
  page->Sample({}, absl::ToDoubleSeconds(snapshot.uptime));
  page->Family("kvstore_daemon_core_queue_tasks", kGauge, "Tasks that wait for the core thread.");
  page->Sample({}, snapshot.core_queue);
}

void WriteTierLevels(MetricsPage* page, const StoreStatus& s) {
  ByTier(page, s, "kvstore_tiers_capacity_bytes", kGauge, "Size of the tier.",
         [](const TierRow& t) { return t.stats.capacity_bytes; });
  ByTier(page, s, "kvstore_tiers_used_bytes", kGauge, "Bytes of slots that are in use.",
         [](const TierRow& t) { return t.stats.used_bytes; });
  ByTier(page, s, "kvstore_tiers_used_pages", kGauge, "Slots that are in use.",
         [](const TierRow& t) { return t.stats.used_pages; });
  ByTier(page, s, "kvstore_tiers_quarantine_pages", kGauge,
         "Slots kept out of use because their content or device misbehaved.",
         [](const TierRow& t) { return t.stats.quarantined_pages; });
  ByTier(page, s, "kvstore_tiers_in_flight_operations", kGauge, "Reads and writes under way.",
         [](const TierRow& t) { return t.stats.in_flight; });
  ByTier(page, s, "kvstore_tiers_waiting_moves", kGauge,
         "Pages that wait for a place in the tier's queue.",
         [](const TierRow& t) { return t.waiting_moves; });
  page->Family("kvstore_tiers_state", kGauge, "1 for the state that the tier is in.");
  for (const TierRow& row : s.tiers) {
    for (const tiers::TierState state :
         {tiers::TierState::kServing, tiers::TierState::kReadOnly, tiers::TierState::kFailed}) {
      page->Sample({{"tier", tiers::TierName(row.kind)}, {"state", StateName(state)}},
                   uint64_t{row.state == state});
    }
  }
  page->Family("kvstore_tiers_breaker_state", kGauge,
               "1 for the state that the breaker of the tier's device is in.");
  for (const TierRow& row : s.tiers) {
    for (const tiers::BreakerState state :
         {tiers::BreakerState::kClosed, tiers::BreakerState::kOpen,
          tiers::BreakerState::kHalfOpen}) {
      page->Sample({{"tier", tiers::TierName(row.kind)}, {"state", tiers::BreakerName(state)}},
                   uint64_t{row.breaker == state});
    }
  }
  ByTier(page, s, "kvstore_tiers_breaker_openings_total", kCounter,
         "Times that the tier's device was given up.",
         [](const TierRow& t) { return t.stats.breaker_openings; });
}

void WriteTierTraffic(MetricsPage* page, const StoreStatus& s) {
  ByTier(page, s, "kvstore_tiers_hit_pages_total", kCounter,
         "Blocks acquired that were found in this tier.",
         [](const TierRow& t) { return t.counters.hit_pages; });
  ByTier(page, s, "kvstore_tiers_read_bytes_total", kCounter,
         "Bytes the daemon read from the tier.",
         [](const TierRow& t) { return t.stats.read_bytes; });
  ByTier(page, s, "kvstore_tiers_write_bytes_total", kCounter, "Bytes written to the tier.",
         [](const TierRow& t) { return t.stats.write_bytes; });
  ByTier(page, s, "kvstore_tiers_evicted_pages_total", kCounter, "Copies removed to make room.",
         [](const TierRow& t) { return t.counters.evicted_pages; });
  ByTier(page, s, "kvstore_tiers_promoted_pages_total", kCounter, "Copied to a hotter tier.",
         [](const TierRow& t) { return t.counters.promoted_pages; });
  ByTier(page, s, "kvstore_tiers_demoted_pages_total", kCounter, "Copied here from a hotter tier.",
         [](const TierRow& t) { return t.counters.demoted_pages; });
  ByTier(page, s, "kvstore_tiers_recovered_pages_total", kCounter, "Found again at start.",
         [](const TierRow& t) { return t.counters.recovered_pages; });
  page->Family("kvstore_tiers_load_seconds", kHistogram,
               "Page from this tier to DRAM, from its submission to the tier.");
  for (const TierRow& row : s.tiers)
    page->Histogram({{"tier", tiers::TierName(row.kind)}}, row.load_times);
  page->Family("kvstore_tiers_write_seconds", kHistogram,
               "Page from a hotter tier to this one, from its submission to the tier.");
  for (const TierRow& row : s.tiers)
    page->Histogram({{"tier", tiers::TierName(row.kind)}}, row.write_times);
}

// What shows that the promise is kept: every check of a page, and every one that failed.
void WriteProof(MetricsPage* page, const StoreStatus& s) {
  ByTier(page, s, "kvstore_store_verify_total", kCounter,
         "Pages of this tier whose checksums the daemon checked.", [](const TierRow& t) {
           return t.counters.verified_pages + t.counters.differing_pages +
                  t.counters.unreadable_pages;
         });
  page->Family("kvstore_store_verify_fail_total", kCounter,
               "Checks that failed: bytes that differ, or a device that could not be read.");
  for (const TierRow& row : s.tiers) {
    const std::string_view tier = tiers::TierName(row.kind);
    page->Sample({{"tier", tier}, {"reason", "differs"}}, row.counters.differing_pages);
    page->Sample({{"tier", tier}, {"reason", "unreadable"}}, row.counters.unreadable_pages);
  }
  page->Family("kvstore_store_reported_bad_pages_total", kCounter,
               "Pages that readers found wrong and the daemon then checked.");
  page->Sample({}, s.counters.reported_bad_pages);
  ByTier(page, s, "kvstore_store_deadline_miss_total", kCounter,
         "Reads and writes of the tier that were not done in time.",
         [](const TierRow& t) { return t.counters.deadline_misses; });
  ByTier(page, s, "kvstore_store_move_fail_total", kCounter, "Moves that failed, for any reason.",
         [](const TierRow& t) { return t.counters.move_failures; });
  ByTier(page, s, "kvstore_store_lost_pages_total", kCounter,
         "Copies dropped because they were unreadable or wrong.",
         [](const TierRow& t) { return t.counters.lost_pages; });
  page->Family("kvstore_tiers_errors_total", kCounter, "Errors as the tier counts them.");
  for (const TierRow& row : s.tiers) {
    const std::string_view tier = tiers::TierName(row.kind);
    page->Sample({{"tier", tier}, {"kind", "read"}}, row.stats.read_errors);
    page->Sample({{"tier", tier}, {"kind", "write"}}, row.stats.write_errors);
    page->Sample({{"tier", tier}, {"kind", "checksum"}}, row.stats.checksum_errors);
  }
}

void WriteStoreCounters(MetricsPage* page, const store::StoreCounters& c) {
  const std::tuple<const char*, const char*, uint64_t> rows[] = {
      {"acquires", "Acquire calls that reached the store.", c.acquires},
      {"requested_blocks", "Blocks that Acquire calls asked for.", c.requested_blocks},
      {"matched_blocks", "Blocks that Acquire calls found.", c.matched_blocks},
      {"truncated_loads", "Leases that lost blocks on their way up.", c.truncated_loads},
      {"reserved_blocks", "Blocks reserved for saving.", c.reserved_blocks},
      {"committed_blocks", "Blocks published.", c.committed_blocks},
      {"aborted_blocks", "Blocks reserved and given back.", c.aborted_blocks},
      {"no_space_blocks", "Blocks that could not be reserved for lack of space.",
       c.no_space_blocks},
      {"skipped_writes", "Copies put off because the write-behind queue was full.",
       c.skipped_writes},
      {"dropped_blocks", "Blocks whose last copy went.", c.dropped_blocks},
      {"expired_leases", "Leases that were not renewed in time.", c.leases_expired},
      {"expired_reservations", "Reservations that were not ended in time.", c.reservations_expired},
      {"ended_sessions", "Sessions that ended.", c.sessions_ended},
  };
  for (const auto& [name, help, value] : rows) {
    page->Family(std::string("kvstore_store_") + name + "_total", kCounter, help);
    page->Sample({}, value);
  }
}

void WriteStoreLevels(MetricsPage* page, const StoreStatus& s) {
  const std::tuple<const char*, const char*, uint64_t> rows[] = {
      {"blocks", "Blocks in the index.", s.blocks},
      {"namespaces", "Namespaces.", s.namespaces},
      {"sessions", "Sessions.", s.sessions},
      {"leases", "Leases held.", s.leases},
      {"reservations", "Reservations open.", s.reservations},
      {"moves", "Moves between tiers, waiting or under way.", s.moves_in_flight},
      {"recovering", "1 while stored blocks are becoming matchable.", s.is_recovering},
      {"draining", "1 while no saves are taken.", s.is_draining},
  };
  for (const auto& [name, help, value] : rows) {
    page->Family(std::string("kvstore_store_") + name, kGauge, help);
    page->Sample({}, value);
  }
}

void WriteOperations(MetricsPage* page, const std::vector<OperationRow>& operations) {
  page->Family("kvstore_service_calls_total", kCounter, "Calls that ended, by how they ended.");
  for (const OperationRow& row : operations) {
    for (const auto& [code, calls] : row.calls_by_code)
      page->Sample({{"operation", row.operation}, {"code", code}}, calls);
  }
  page->Family("kvstore_service_call_seconds", kHistogram,
               "From a call's admission to its reply; acquire: to its first message.");
  for (const OperationRow& row : operations)
    page->Histogram({{"operation", row.operation}}, row.times);
}

constexpr std::string_view kDoorLevels[] = {"connections", "memory_connections",
                                            "calls_in_progress"};

void WriteDoors(MetricsPage* page, const std::vector<std::pair<std::string, uint64_t>>& doors) {
  for (const auto& [name, value] : doors) {
    const bool is_level = std::ranges::find(kDoorLevels, name) != std::end(kDoorLevels);
    page->Family("kvstore_service_" + name + (is_level ? "" : "_total"),
                 is_level ? kGauge : kCounter, is_level ? "At the door, now." : "Since start.");
    page->Sample({}, value);
  }
}

uint64_t TotalBytes(const store::TenantRow& row) {
  uint64_t total = 0;
  for (const store::TenantRow::InTier& tier : row.tiers) total += tier.used_bytes;
  return total;
}

// The largest tenants; all others as one row, whose quotas and shares mean nothing.
std::vector<store::TenantRow> LabelledTenants(std::vector<store::TenantRow> rows) {
  std::ranges::sort(rows, [](const store::TenantRow& a, const store::TenantRow& b) {
    return std::make_pair(TotalBytes(b), a.name) < std::make_pair(TotalBytes(a), b.name);
  });
  if (rows.size() <= kTenantLabelsMax) return rows;
  store::TenantRow& others = rows[kTenantLabelsMax];
  others.name = kOtherTenants;
  for (store::TenantRow::InTier& tier : others.tiers) tier.quota_bytes = tier.share_bytes = 0;
  for (size_t i = kTenantLabelsMax + 1; i < rows.size(); ++i) {
    const store::TenantRow& row = rows[i];
    for (size_t t = 0; t < others.tiers.size(); ++t) {
      others.tiers[t].used_bytes += row.tiers[t].used_bytes;
      others.tiers[t].evicted_pages += row.tiers[t].evicted_pages;
    }
    others.sessions += row.sessions;
    others.leases += row.leases;
    others.leased_blocks += row.leased_blocks;
    others.reserved_blocks += row.reserved_blocks;
    others.moves += row.moves;
  }
  rows.resize(kTenantLabelsMax + 1);
  return rows;
}

void WriteTenants(MetricsPage* page, const MetricsSnapshot& snapshot) {
  const std::vector<store::TenantRow> rows = LabelledTenants(snapshot.tenants);
  using InTier = store::TenantRow::InTier;
  const std::tuple<const char*, MetricType, const char*, uint64_t InTier::*> by_tier[] = {
      {"bytes", kGauge, "Bytes that a tenant uses of a tier; the smaller tenants together.",
       &InTier::used_bytes},
      {"quota_bytes", kGauge, "What a tenant may use of a tier; 0: no quota.",
       &InTier::quota_bytes},
      {"share_bytes", kGauge, "What no tenant above its own share can take away; 0 while unused.",
       &InTier::share_bytes},
      {"evicted_pages_total", kCounter, "Copies of a tenant that were removed to make room.",
       &InTier::evicted_pages},
  };
  for (const auto& [name, type, help, member] : by_tier) {
    page->Family(std::string("kvstore_store_tenant_") + name, type, help);
    for (const store::TenantRow& row : rows) {
      // Who is among the others changes: their sum could fall.
      if (type == kCounter && row.name == kOtherTenants) continue;
      for (const InTier& tier : row.tiers)
        page->Sample({{"tenant", row.name}, {"tier", tiers::TierName(tier.kind)}}, tier.*member);
    }
  }
  const std::tuple<const char*, const char*, size_t store::TenantRow::*> levels[] = {
      {"sessions", "Sessions of a tenant.", &store::TenantRow::sessions},
      {"leases", "Leases that a tenant's clients hold.", &store::TenantRow::leases},
      {"pins", "Blocks that a tenant's leases keep from eviction, once a lease.",
       &store::TenantRow::leased_blocks},
      {"reserved_blocks", "Blocks that a tenant has reserved and not committed.",
       &store::TenantRow::reserved_blocks},
      {"moves", "Moves between tiers for a tenant, waiting or under way.",
       &store::TenantRow::moves},
  };
  for (const auto& [name, help, member] : levels) {
    page->Family(std::string("kvstore_store_tenant_") + name, kGauge, help);
    for (const store::TenantRow& row : rows)
      page->Sample({{"tenant", row.name}}, uint64_t{row.*member});
  }
}

}  // namespace

std::string RenderMetrics(const MetricsSnapshot& snapshot) {
  MetricsPage page;
  WriteBuild(&page, snapshot);
  WriteTierLevels(&page, snapshot.store);
  WriteTierTraffic(&page, snapshot.store);
  WriteProof(&page, snapshot.store);
  WriteStoreCounters(&page, snapshot.store.counters);
  WriteStoreLevels(&page, snapshot.store);
  WriteTenants(&page, snapshot);
  WriteOperations(&page, snapshot.operations);
  WriteDoors(&page, snapshot.doors);
  return std::move(page).Take();
}

HealthAnswer RenderHealth(const absl::StatusOr<MetricsSnapshot>& snapshot) {
  nlohmann::json degraded = nlohmann::json::array();
  const auto answer = [&](int code, const char* health) {
    const nlohmann::json body = {{"health", health}, {"degraded", degraded}};
    return HealthAnswer{
        .http_code = code,
        .json = body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"};
  };
  if (!snapshot.ok()) return answer(503, "unresponsive");
  bool has_failed = false;
  for (const std::string& line : snapshot->degraded) degraded.push_back(line);
  for (const TierRow& row : snapshot->store.tiers) {
    if (!row.degraded.empty()) degraded.push_back(row.degraded);
    if (row.state != tiers::TierState::kServing) {
      degraded.push_back("tier " + std::string(tiers::TierName(row.kind)) + " is " +
                         std::string(StateName(row.state)));
    }
    has_failed |= row.kind == tiers::TierKind::kDram && row.state == tiers::TierState::kFailed;
  }
  if (has_failed) return answer(503, "failed");
  if (snapshot->store.is_draining) return answer(503, "draining");
  return answer(200, degraded.empty() ? "serving" : "degraded");
}

}  // namespace kvstore::metrics
