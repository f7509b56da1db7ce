#include "absl/time/clock.h"
#include "kvstore/base/status_macros.h"
#include "tools/kvbench/daemon.h"
#include "tools/kvbench/page_set.h"
#include "tools/kvbench/random_bytes.h"
#include "tools/kvbench/results.h"
#include "tools/kvbench/stopwatch.h"
#include "tools/kvbench/store_parts.h"
#include "tools/kvbench/suites.h"

namespace kvstore::bench {

absl::Status MeasureIdle(const Settings& settings, Report& report) {
  ShowProgress("an idle daemon");
  constexpr uint64_t kTierBytes = uint64_t{128} << 20;
  ASSIGN_OR_RETURN(const auto daemon, Daemon::Start({.bin_dir = settings.bin_dir,
                                                     .work_dir = settings.work_dir,
                                                     .dram_bytes = kTierBytes,
                                                     .gpu_bytes = kTierBytes,
                                                     .nvme_bytes = 4 * kTierBytes}));
  ASSIGN_OR_RETURN(const auto client, daemon->Connect());
  const NamespaceSpec spec = PageSpec("kvbench-idle", 65536);
  ASSIGN_OR_RETURN(const client::Namespace ns, client->Open("idle", spec));
  ASSIGN_OR_RETURN(const PageSet set, PageSet::Make(uint64_t{2} << 20, 65536, 31));
  RETURN_IF_ERROR(client->Put(ns, set.hashes(0), set.batch(0)).status());
  ASSIGN_OR_RETURN(client::Lease lease,
                   client->Acquire(ns, set.hashes(0), client::HottestTier::kDram));
  const absl::Duration settle = absl::Seconds(settings.is_quick() ? 0.2 : 3);
  const absl::Duration window = absl::Seconds(settings.is_quick() ? 0.3 : 10);
  absl::SleepFor(settle);
  Sample shares;
  for (int i = 0; i < (settings.is_quick() ? 1 : 3); ++i) {
    const double cpu_before = daemon->CpuSeconds();
    const Stopwatch watch;
    absl::SleepFor(window);
    shares.Add((daemon->CpuSeconds() - cpu_before) / watch.Seconds() * 100);
  }
  Result result = MakeResult("store/idle_cpu/10s", "%", Better::kLower, shares);
  result.budget = ValueBudget("P15", 0.5);
  report.Add(std::move(result));
  report.AddNote(
      "store/idle_cpu: share of a core that a daemon with three tiers, one client and a lease "
      "takes while nothing is asked of it");
  return absl::OkStatus();
}

}  // namespace kvstore::bench
