// All that monitoring is told, as plain values taken at one moment, and the two ways to tell it.
//
// Immutable once made; the functions are thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/base/latency_histogram.h"
#include "kvstore/store/store.h"

namespace kvstore::metrics {

// Tenants with a label of their own; all others share one.
inline constexpr size_t kTenantLabelsMax = 32;
inline constexpr char kOtherTenants[] = "_other";

struct OperationRow {
  std::string operation;
  std::vector<std::pair<std::string, uint64_t>> calls_by_code;
  LatencyHistogram::Snapshot times;
};

struct MetricsSnapshot {
  std::string version;
  std::string commit;
  absl::Duration uptime;
  std::vector<std::string> degraded;  // of the daemon; tiers name theirs in `store`
  store::StoreStatus store;
  std::vector<OperationRow> operations;
  std::vector<store::TenantRow> tenants;
  std::vector<std::pair<std::string, uint64_t>> doors;  // as in kvctl status: name, value
  uint64_t core_queue = 0;                              // tasks that wait for the core
};

// The text of /metrics.
std::string RenderMetrics(const MetricsSnapshot& snapshot);

// The answer of /healthz: 200 while loads are served and saves are taken, also degraded; 503 while
// draining, when the DRAM tier has failed, or without a snapshot because the core does not answer.
struct HealthAnswer {
  int http_code = 0;
  std::string json;  // {"health": "serving", "degraded": [...]}
};
HealthAnswer RenderHealth(const absl::StatusOr<MetricsSnapshot>& snapshot);

}  // namespace kvstore::metrics
