// In builds without CUDA.
#include "tools/kvbench/suites.h"

namespace kvstore::bench {

absl::Status RunPagesSuite(const Settings&, Report&) {
  return absl::FailedPreconditionError(
      "this build has no CUDA: nvcc was not found, or KVSTORE_CUDA is OFF");
}

}  // namespace kvstore::bench
