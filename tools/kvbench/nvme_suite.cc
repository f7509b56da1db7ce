#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "tools/kvbench/nvme_parts.h"
#include "tools/kvbench/suites.h"

namespace kvstore::bench {

absl::Status RunNvmeSuite(const Settings& settings, Report& report) {
  report.AddNote(absl::StrCat("a set of ", SizeName(settings.set_bytes), " in ", settings.work_dir,
                              "; distinct random bytes, O_DIRECT, checksums on"));
  RETURN_IF_ERROR(MeasureNvmeTier(settings, uint64_t{1} << 20, report));
  RETURN_IF_ERROR(MeasureNvmeTier(settings, uint64_t{64} << 10, report));
  RETURN_IF_ERROR(MeasureNvmeLoads(settings, report));
  return MeasureRestart(settings, report);
}

}  // namespace kvstore::bench
