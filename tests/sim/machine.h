// One simulated machine: the clock, the disk that outlives processes, and the daemon's core that
// runs on them (store, policies, memory tiers, NVMe tier with its file mover), started and killed
// as often as wanted.
//
// Confined to the simulation's thread.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "kvstore/store/store.h"
#include "tests/sim/failpoints.h"
#include "tests/sim/scenario.h"
#include "tests/sim/sim_disk.h"
#include "tests/sim/sim_index.h"
#include "tests/sim/sim_memory_tier.h"
#include "tests/sim/sim_random.h"
#include "tests/sim/watched_tier.h"
#include "tiers/nvme/nvme_tier.h"

namespace kvstore::sim {

// A folder of its own for the superblocks; empty and removed at the end. Memory-backed where
// there is such a file system.
class ScratchFolder {
 public:
  ScratchFolder();
  ~ScratchFolder();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class Machine {
 public:
  using Report = std::function<void(std::string)>;
  Machine(const Scenario& scenario, const std::string& folder, Random& random, Report report);
  ~Machine();

  // Starts a daemon and its recovery.
  void Boot();
  // SIGKILL: what reached the page cache and the device stays.
  void Kill();
  // Kill() and of what was not synced some is lost.
  void LosePower();
  // As SIGTERM: tiers are stopped in order, all is synced.
  void StopCleanly();
  bool is_running() const { return store_ != nullptr; }
  // Runs one task of the daemon, if one is due.
  bool RunOne();
  // Between steps.
  void Settle();
  // No fault happens from here on.
  void Heal();
  // The daemon stands still for so long.
  void Pause(absl::Duration time);

  store::Store& store() { return *store_; }
  ManualExecutor& executor() { return *executor_; }
  ManualClock& clock() { return clock_; }
  Failpoints& failpoints() { return failpoints_; }
  Mappings& mappings() { return mappings_; }
  SimDisk& disk() { return disk_; }
  RecordLog& log() { return log_; }
  tiers::Tier* tier(tiers::TierKind kind);
  // Of the process: changes at every Boot().
  uint64_t incarnation() const { return incarnation_; }
  bool is_recovered() const { return is_recovered_; }

 private:
  tiers::NvmeOptions NvmeOptionsFor();
  // Kept memory as it was when the daemon died.
  void RestoreKeptMemory();
  void Destroy();

  const Scenario& scenario_;
  const std::string folder_;
  Random& random_;
  const Report report_;
  ManualClock clock_;
  Failpoints failpoints_;
  Mappings mappings_;
  SimDisk disk_;
  RecordLog log_;
  SimIndex::Faults index_faults_;
  MemoryFaults gpu_faults_, dram_faults_;
  KeptMachineMemory kept_;
  std::optional<KeptMachineMemory::Snapshot> kept_at_death_;
  absl::Time paused_until_ = absl::InfinitePast();
  uint64_t incarnation_ = 0;
  bool is_recovered_ = false;

  std::unique_ptr<ManualExecutor> executor_;
  std::unique_ptr<SimMemoryTier> gpu_, dram_;
  std::unique_ptr<tiers::NvmeTier> nvme_;
  std::unique_ptr<WatchedTier> watched_;
  std::unique_ptr<store::Store> store_;
};

}  // namespace kvstore::sim
