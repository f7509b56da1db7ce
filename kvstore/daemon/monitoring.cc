#include "kvstore/daemon/monitoring.h"

#include <utility>

#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/metrics/metrics_snapshot.h"
#include "kvstore/metrics/snapshot_cache.h"

namespace kvstore::daemon {
namespace {

using metrics::HttpAnswer;
using metrics::MetricsSnapshot;

// The part of a snapshot that the core need not make.
void AddRest(const MonitoredParts& parts, absl::Time started, MetricsSnapshot* snapshot) {
  snapshot->version = parts.version;
  snapshot->commit = parts.commit;
  snapshot->uptime = parts.clock.Now() - started;
  snapshot->degraded = parts.degraded();
  snapshot->doors = parts.service.counters();
  snapshot->core_queue = parts.core.queue_size();
  for (service::CallRow& row : parts.service.calls()) {
    snapshot->operations.push_back({.operation = std::move(row.operation),
                                    .calls_by_code = std::move(row.calls_by_code),
                                    .times = row.times});
  }
}

// What the pages share; confined to the HTTP server's thread.
struct Source {
  explicit Source(MonitoredParts p)
      : parts(std::move(p)),
        started(parts.clock.Now()),
        cache(
            [this](const metrics::SnapshotCache::Answer& answer) {
              return parts.core.TryPost([&store = parts.store, answer] {
                MetricsSnapshot snapshot;
                snapshot.store = store.status();
                snapshot.tenants = store.ListTenants();
                answer(std::move(snapshot));
              });
            },
            parts.clock) {}

  absl::StatusOr<MetricsSnapshot> Take() {
    ASSIGN_OR_RETURN(MetricsSnapshot snapshot, cache.Get());
    AddRest(parts, started, &snapshot);
    return snapshot;
  }

  const MonitoredParts parts;
  const absl::Time started;
  metrics::SnapshotCache cache;
};

}  // namespace

absl::StatusOr<std::unique_ptr<metrics::HttpServer>> StartMonitoring(const std::string& address,
                                                                     MonitoredParts parts) {
  ASSIGN_OR_RETURN(const metrics::HttpAddress where, metrics::ParseHttpAddress(address));
  const Clock& clock = parts.clock;
  auto source = std::make_shared<Source>(std::move(parts));  // owned by both pages
  metrics::HttpPages pages;
  pages["/metrics"] = [source] {
    const absl::StatusOr<MetricsSnapshot> snapshot = source->Take();
    if (!snapshot.ok()) {
      return HttpAnswer{.code = 503,
                        .content_type = "text/plain",
                        .body = std::string(snapshot.status().message()) + "\n"};
    }
    return HttpAnswer{.code = 200,
                      .content_type = "text/plain; version=0.0.4; charset=utf-8",
                      .body = metrics::RenderMetrics(*snapshot)};
  };
  pages["/healthz"] = [source] {
    metrics::HealthAnswer health = metrics::RenderHealth(source->Take());
    return HttpAnswer{.code = health.http_code,
                      .content_type = "application/json",
                      .body = std::move(health.json)};
  };
  ASSIGN_OR_RETURN(std::unique_ptr<metrics::HttpServer> server,
                   metrics::HttpServer::Start(where, std::move(pages), clock));
  Log(LogLevel::kInfo, "metrics",
      {{"http", (where.is_ipv6 ? "[::1]:" : "127.0.0.1:") + std::to_string(server->port())}});
  return server;
}

}  // namespace kvstore::daemon
