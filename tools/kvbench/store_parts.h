// The parts of the store suite, one file each.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "tools/kvbench/ceilings.h"
#include "tools/kvbench/redis_peer.h"
#include "tools/kvbench/report.h"
#include "tools/kvbench/settings.h"

namespace kvstore::bench {

// P8: Acquire by hashes, no bytes; and the client's hashing of tokens.
absl::Status MeasureLookups(const Settings& settings, EchoProcess& echo, Report& report);
// P12: put, get and verify pages of one size. `redis` may be null.
absl::Status MeasurePages(const Settings& settings, uint64_t page_bytes, RedisPeer* redis,
                          Report& report);
// P15: CPU of a daemon with all tiers and one client, which does nothing.
absl::Status MeasureIdle(const Settings& settings, Report& report);

}  // namespace kvstore::bench
