#include "tests/sim/machine.h"

#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvstore::sim {
namespace {

constexpr uint64_t kExtentBytes = 64 << 10;  // the smallest
constexpr uint64_t kIndexBytes = 4 << 20;

}  // namespace

ScratchFolder::ScratchFolder() {
  const std::string base =
      access("/dev/shm", W_OK) == 0 ? "/dev/shm" : std::filesystem::temp_directory_path().string();
  std::string name = base + "/kvstore-sim-XXXXXX";
  if (mkdtemp(name.data()) != nullptr) path_ = name;
}

ScratchFolder::~ScratchFolder() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

Machine::Machine(const Scenario& scenario, const std::string& folder, Random& random, Report report)
    : scenario_(scenario),
      folder_(folder),
      random_(random),
      report_(std::move(report)),
      disk_(scenario.num_extents * kExtentBytes, clock_, failpoints_, random),
      index_faults_(scenario.index),
      gpu_faults_(scenario.gpu.faults),
      dram_faults_(scenario.dram.faults) {
  disk_.set_faults(scenario.disk);
  if (scenario.keeps_dram) failpoints_.set_on_off([this] { kept_at_death_ = kept_.Take(); });
}

Machine::~Machine() {
  if (!is_running()) return;
  failpoints_.TurnOff();
  Destroy();
}

tiers::NvmeOptions Machine::NvmeOptionsFor() {
  tiers::NvmeOptions options{
      .dirs = {folder_},
      .capacity_bytes = kIndexBytes + (16 << 10) + scenario_.num_extents * kExtentBytes,
      .index_bytes = kIndexBytes,
      .extent_bytes = kExtentBytes,
      .queue_depth = 4,
      .inflight_max = 8,
      .piece_bytes = 4096};
  options.simulation = tiers::NvmeSimulation{
      .executor = executor_.get(),
      .make_index = [this]() -> absl::StatusOr<std::unique_ptr<tiers::RecordIndex>> {
        return std::make_unique<SimIndex>(log_, index_faults_, *executor_, clock_, failpoints_,
                                          random_);
      },
      .make_backend = [this]() -> absl::StatusOr<std::unique_ptr<transfer::IoBackend>> {
        return disk_.MakeBackend();
      }};
  return options;
}

void Machine::RestoreKeptMemory() {
  if (!kept_at_death_.has_value()) return;  // stopped cleanly, or never ran
  kept_.Restore(*kept_at_death_);
  kept_at_death_.reset();
}

void Machine::Boot() {
  RestoreKeptMemory();
  failpoints_.TurnOn();
  ++incarnation_;
  is_recovered_ = false;
  executor_ = std::make_unique<ManualExecutor>(clock_);
  SimMemoryTier::Options dram = scenario_.dram;
  dram.faults = dram_faults_;
  dram.hold_time = scenario_.lease_time;
  dram_ = SimMemoryTier::Make(dram, *executor_, clock_, mappings_, random_, failpoints_,
                              scenario_.keeps_dram ? &kept_ : nullptr);
  if (dram_ == nullptr) return report_("DRAM: the ledger is damaged");
  if (scenario_.has_gpu) {
    SimMemoryTier::Options gpu = scenario_.gpu;
    gpu.faults = gpu_faults_;
    gpu_ = SimMemoryTier::Make(gpu, *executor_, clock_, mappings_, random_, failpoints_, nullptr);
  }
  if (scenario_.has_nvme) {
    auto nvme = tiers::NvmeTier::Open(NvmeOptionsFor(), *executor_, clock_);
    if (!nvme.ok()) return report_(absl::StrCat("NVMe: ", nvme.status().ToString()));
    nvme_ = *std::move(nvme);
    watched_ = std::make_unique<WatchedTier>(*nvme_, clock_, paused_until_, scenario_.disk.hung > 0,
                                             report_);
  }
  store::StoreOptions options;
  options.lease_time = scenario_.lease_time;
  options.move_deadline = scenario_.move_deadline;
  options.policy = scenario_.policy;
  store_ = std::make_unique<store::Store>(
      options, store::Store::Tiers{.gpu = gpu_.get(), .dram = dram_.get(), .nvme = watched_.get()},
      *executor_, clock_);
  store_->Start([this](absl::Status) { is_recovered_ = true; });
}

void Machine::Kill() {
  failpoints_.TurnOff();
  disk_.EndProcess();
  Destroy();
}

void Machine::LosePower() {
  Kill();
  kept_ = {};
  kept_at_death_.reset();
  disk_.LosePower();
  log_.LosePower(random_);
}

void Machine::StopCleanly() {
  Destroy();
  if (!failpoints_.is_off()) disk_.Sync();
}

// As the daemon's shutdown: tiers report what is in flight, then the store goes.
void Machine::Destroy() {
  disk_.set_is_draining(true);
  for (tiers::Tier* tier :
       {static_cast<tiers::Tier*>(watched_.get()), static_cast<tiers::Tier*>(gpu_.get()),
        static_cast<tiers::Tier*>(dram_.get())}) {
    if (tier != nullptr) tier->Stop();
  }
  store_.reset();
  watched_.reset();
  nvme_.reset();
  gpu_.reset();
  dram_.reset();
  executor_.reset();
  mappings_.Clear();
  disk_.set_is_draining(false);
}

bool Machine::RunOne() { return executor_->RunOne(); }

void Machine::Pause(absl::Duration time) {
  clock_.Advance(time);
  paused_until_ = clock_.Now();
}

void Machine::Settle() {
  if (gpu_ != nullptr) gpu_->Settle();
  if (dram_ != nullptr) dram_->Settle();
}

void Machine::Heal() {
  disk_.set_faults({});
  index_faults_ = {};
  gpu_faults_ = dram_faults_ = {};
  if (gpu_ != nullptr) gpu_->set_faults({});
  if (dram_ != nullptr) dram_->set_faults({});
}

tiers::Tier* Machine::tier(tiers::TierKind kind) {
  switch (kind) {
    case tiers::TierKind::kGpu:
      return gpu_.get();
    case tiers::TierKind::kDram:
      return dram_.get();
    case tiers::TierKind::kNvme:
      return watched_.get();
  }
  return nullptr;
}

}  // namespace kvstore::sim
