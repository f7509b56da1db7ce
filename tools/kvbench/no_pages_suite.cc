// In builds without CUDA.
#include "tools/kvbench/pinned_copy.h"
#include "tools/kvbench/suites.h"

namespace kvstore::bench {

namespace {

absl::Status NoCuda() {
  return absl::FailedPreconditionError(
      "this build has no CUDA: nvcc was not found, or KVSTORE_CUDA is OFF");
}

}  // namespace

absl::Status RunPagesSuite(const Settings&, Report&) { return NoCuda(); }
absl::StatusOr<PinnedCopy> MeasurePinnedCopy(int) { return NoCuda(); }

}  // namespace kvstore::bench
