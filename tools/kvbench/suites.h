// The suites: each measures its part of the system and adds figures to the report.
//
// A suite checks what it moves: wrong bytes end it with an error, whatever its speed.
#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "tools/kvbench/report.h"
#include "tools/kvbench/settings.h"

namespace kvstore::bench {

// A daemon and a client process: lookups, pages, idle CPU; Redis on the same work.
absl::Status RunStoreSuite(const Settings& settings, Report& report);
// The store's core on one thread, with tiers that move no bytes.
absl::Status RunIndexSuite(const Settings& settings, Report& report);
// The NVMe tier against raw io_uring on its own file, and a daemon's restart.
absl::Status RunNvmeSuite(const Settings& settings, Report& report);
// Pages between host and device memory, and their checksums, against a pinned copy.
absl::Status RunPagesSuite(const Settings& settings, Report& report);
// The engine's time to first token, cold and from each tier.
absl::Status RunTtftSuite(const Settings& settings, Report& report);

// Says on stderr what is being measured now.
void ShowProgress(std::string_view what);

}  // namespace kvstore::bench
