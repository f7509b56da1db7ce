// The parts of the nvme suite, one file each.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "tools/kvbench/report.h"
#include "tools/kvbench/settings.h"

namespace kvstore::bench {

// P10: the tier as it runs in a daemon, on a core thread of its own, against raw io_uring on its
// own file. Pages of one slice.
absl::Status MeasureNvmeTier(const Settings& settings, uint64_t page_bytes, Report& report);
// A client gets pages that only the NVMe tier of a daemon holds.
absl::Status MeasureNvmeLoads(const Settings& settings, Report& report);
// P14: how long after its start a daemon serves what is on disk.
absl::Status MeasureRestart(const Settings& settings, Report& report);

}  // namespace kvstore::bench
