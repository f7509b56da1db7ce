// What the daemon knows and the store does not, for the admin service.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"

namespace kvstore::service {

// The functions are thread-safe.
struct DaemonFacts {
  struct ConfigRow {
    std::string key, value, source;
  };
  std::string version;
  std::string commit;
  uint64_t incarnation = 0;  // differs at every start
  absl::Time started;        // on the service's clock
  std::function<std::vector<ConfigRow>()> config;
  std::function<std::vector<std::string>()> degraded;  // condition and effect, one line each
  std::function<bool()> is_stopping;
  // Tells gRPC health checks whether saves are taken; without effect once the daemon is stopping.
  std::function<void(bool is_draining)> set_draining;
  std::function<std::vector<std::pair<std::string, uint64_t>>()>
      counters;  // of the doors: name, value since start
};

}  // namespace kvstore::service
