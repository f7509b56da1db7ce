// The rate of one big copy from page-locked host memory to a CUDA device: the ceiling of loads.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace kvstore::bench {

struct PinnedCopy {
  double gb_s = 0;  // the best of three
  std::string device_name;
};

// Errors: FailedPrecondition, a build without CUDA, or no driver; what opening the device reports.
absl::StatusOr<PinnedCopy> MeasurePinnedCopy(int device);

}  // namespace kvstore::bench
