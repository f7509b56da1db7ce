// The monitoring pages, wired to the parts that know: /metrics and /healthz of server.http.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "kvstore/metrics/http_server.h"
#include "kvstore/service/service.h"
#include "kvstore/store/store.h"

namespace kvstore::daemon {

// All outlive the server; the store may go once the server is gone and the core has run what was
// posted before.
struct MonitoredParts {
  EventLoop& core;
  const store::Store& store;
  const service::Service& service;
  const Clock& clock;
  std::string version;
  std::string commit;
  std::function<std::vector<std::string>()> degraded;  // thread-safe
};

// `address` as in server.http. Errors: those of HttpServer::Start().
absl::StatusOr<std::unique_ptr<metrics::HttpServer>> StartMonitoring(const std::string& address,
                                                                     MonitoredParts parts);

}  // namespace kvstore::daemon
