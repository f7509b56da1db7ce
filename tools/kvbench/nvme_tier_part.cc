#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "kvstore/base/executor.h"
#include "kvstore/base/status_macros.h"
#include "tiers/nvme/nvme_tier.h"
#include "tools/kvbench/ceilings.h"
#include "tools/kvbench/nvme_parts.h"
#include "tools/kvbench/page_set.h"
#include "tools/kvbench/random_bytes.h"
#include "tools/kvbench/raw_disk.h"
#include "tools/kvbench/results.h"
#include "tools/kvbench/stopwatch.h"
#include "tools/kvbench/suites.h"
#include "tools/kvbench/work_folder.h"
#include "transfer/memory/page_codec.h"

namespace kvstore::bench {
namespace {

constexpr uint32_t kDepth = 32;           // in the kernel, ours and raw
constexpr size_t kInFlight = 2 * kDepth;  // handed to the tier, as the store does
constexpr PoolId kPool{1};

// Bytes that this process had the kernel write to devices since its start.
uint64_t WrittenBytes() {
  std::ifstream file("/proc/self/io");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("write_bytes: ")) return std::strtoull(line.c_str() + 13, nullptr, 10);
  }
  return 0;
}

// Sealed slots with distinct bytes, and room to read them into.
class Slots {
 public:
  static absl::StatusOr<Slots> Make(uint64_t set_bytes, uint64_t page_bytes) {
    const PageShape shape = PageSpec("kvbench-nvme", page_bytes).shape;
    const size_t count = std::max<uint64_t>(kInFlight, set_bytes / page_bytes);
    ASSIGN_OR_RETURN(SetMemory sources, SetMemory::Make(count * shape.slot_bytes()));
    ASSIGN_OR_RETURN(SetMemory sinks, SetMemory::Make(kInFlight * shape.slot_bytes()));
    return Slots(shape, count, std::move(sources), std::move(sinks));
  }

  size_t size() const { return identities_.size(); }
  const PageShape& shape() const { return shape_; }
  const PageIdentity& identity(size_t i) const { return identities_[i]; }
  MutableRegion source(size_t i) const { return Region(sources_, i); }
  MutableRegion sink(size_t i) const { return Region(sinks_, i); }
  const SetMemory& sinks() const { return sinks_; }
  const SetMemory& sources() const { return sources_; }
  uint64_t bytes() const { return size() * shape_.page_bytes(); }

 private:
  Slots(PageShape shape, size_t count, SetMemory sources, SetMemory sinks)
      : shape_(shape), sources_(std::move(sources)), sinks_(std::move(sinks)) {
    FillRandom(sources_.bytes(), 41);
    const std::vector<BlockHash> hashes = RandomHashes(count, 43);
    for (size_t i = 0; i < count; ++i) {
      PageIdentity& identity = identities_.emplace_back();
      identity.shape = shape_;
      identity.hash = hashes[i];
      identity.page_checksum = transfer::SealSlot(source(i).data, identity);
    }
  }
  MutableRegion Region(const SetMemory& memory, size_t i) const {
    const auto piece = memory.piece(i, shape_.slot_bytes());
    return {piece.data(), piece.size()};
  }

  PageShape shape_;
  SetMemory sources_, sinks_;
  std::vector<PageIdentity> identities_;
};

// A tier on a core thread, with kInFlight operations in flight at all times.
class TierRun {
 public:
  static absl::StatusOr<std::unique_ptr<TierRun>> Start(const std::string& dir,
                                                        const Slots& slots) {
    std::unique_ptr<TierRun> run(new TierRun(slots));
    const uint64_t bytes = slots.size() * slots.shape().slot_bytes();
    tiers::NvmeOptions options;
    options.dirs = {dir};
    options.index_bytes = std::max<uint64_t>(uint64_t{64} << 20, slots.size() * 640);
    options.capacity_bytes = 2 * bytes + options.index_bytes + (uint64_t{64} << 20);
    options.queue_depth = kDepth;
    ASSIGN_OR_RETURN(run->tier_, tiers::NvmeTier::Open(options, run->core_, run->clock_));
    run->tier_->RegisterMemory({slots.sources().bytes().data(), slots.sources().bytes().size()});
    run->tier_->RegisterMemory({slots.sinks().bytes().data(), slots.sinks().bytes().size()});
    absl::Status opened;
    absl::Notification recovered;
    run->core_.RunAndWait([&] {
      opened = run->tier_->OpenPool(
          kPool, {.tenant = "default", .slot_bytes = slots.shape().slot_bytes()});
      run->tier_->Recover({.on_metadata = [](std::string, std::string) {},
                           .on_pages =
                               [](const std::vector<tiers::RecoveredPage>& pages) {
                                 return std::vector<bool>(pages.size(), false);
                               },
                           .pool_of = [](const PageIdentity&) { return kPool; },
                           .on_finished = [&](absl::Status) { recovered.Notify(); }});
    });
    recovered.WaitForNotification();
    RETURN_IF_ERROR(opened);
    return run;
  }
  ~TierRun() {
    core_.RunAndWait([this] {
      if (tier_ != nullptr) tier_->Stop();
    });
    core_.RunAndWait([this] { tier_.reset(); });
    core_.Stop();
  }

  uint64_t file_bytes() const {
    return uint64_t{tier_->layout().extents_per_dir} * tier_->layout().extent_bytes;
  }

  // Seconds.
  absl::StatusOr<double> WriteAll() {
    return RunAll([this](size_t at, size_t, tiers::Tier::Done done) {
      absl::StatusOr<PageId> page = tier_->Reserve(kPool);
      if (!page.ok())
        return core_.Post([status = page.status(), d = std::move(done)]() mutable { d(status); });
      pages_[at] = *page;
      tier_->Write(*page, slots_.identity(at), slots_.source(at), Deadline(), std::move(done));
    });
  }
  // In random order. `compare`: every byte with what was written, which costs time.
  enum class Compare : uint8_t { kNo, kYes };
  absl::StatusOr<double> ReadAll(uint64_t seed, Compare compare) {
    const std::vector<uint32_t> order = RandomOrder(slots_.size(), seed);
    return RunAll([&, compare](size_t at, size_t lane, tiers::Tier::Done done) {
      const size_t i = order[at];
      tier_->Read(pages_[i], slots_.identity(i), slots_.sink(lane), Deadline(),
                  [this, i, lane, compare, d = std::move(done)](absl::Status status) mutable {
                    if (status.ok() && compare == Compare::kYes) status = CheckSame(i, lane);
                    d(std::move(status));
                  });
    });
  }
  void ReleaseAll() {
    core_.RunAndWait([this] {
      for (const PageId page : pages_) tier_->Release(page);
    });
  }

 private:
  explicit TierRun(const Slots& slots) : slots_(slots), pages_(slots.size()) {}
  absl::Time Deadline() const { return clock_.Now() + absl::Minutes(2); }

  absl::Status CheckSame(size_t i, size_t lane) const {
    const size_t bytes = slots_.shape().page_bytes();
    if (std::memcmp(slots_.sink(lane).data, slots_.source(i).data, bytes) == 0) {
      std::memset(slots_.sink(lane).data, 0xa5, bytes);
      return absl::OkStatus();
    }
    return absl::DataLossError(absl::StrCat("WRONG BYTES: page ", i, " is not what was written"));
  }

  using Operation = std::function<void(size_t at, size_t lane, tiers::Tier::Done done)>;
  struct Progress {
    size_t next = 0, done = 0;
    absl::Status status;
    absl::Notification finished;
  };
  absl::StatusOr<double> RunAll(Operation operation) {
    Progress progress;
    const Stopwatch watch;
    core_.RunAndWait([&] {
      for (size_t lane = 0; lane < kInFlight; ++lane) Next(progress, operation, lane);
    });
    progress.finished.WaitForNotification();
    const double seconds = watch.Seconds();
    core_.RunAndWait([] {});  // the last completion has let go of `progress`
    if (!progress.status.ok()) return progress.status;
    return seconds;
  }
  // On the core thread.
  void Next(Progress& progress, const Operation& operation, size_t lane) {
    if (progress.next == slots_.size()) return;
    operation(progress.next++, lane, [this, &progress, &operation, lane](absl::Status status) {
      if (!status.ok()) progress.status = std::move(status);
      ++progress.done;
      Next(progress, operation, lane);
      if (progress.done == slots_.size()) progress.finished.Notify();
    });
  }

  const Slots& slots_;
  MonotonicClock clock_;
  EventLoop core_{"bench-core", 1 << 20, clock_};
  std::unique_ptr<tiers::NvmeTier> tier_;
  std::vector<PageId> pages_;
};

struct Figures {
  Sample tier_write, raw_write, tier_read, raw_read;  // GB/s
  Sample write_cpu, read_cpu, raw_read_cpu;           // s/GB
  Sample amplification;
};

double CpuPerGigabyte(double cpu_before, uint64_t bytes) {
  return (CpuSeconds() - cpu_before) / static_cast<double>(bytes) * kGigabyte;
}

absl::Status Repeat(TierRun& run, RawDisk& raw, const Slots& slots, uint64_t seed,
                    Figures& figures) {
  const uint64_t slot_bytes = slots.shape().slot_bytes();
  std::vector<uint64_t> offsets;
  for (const uint32_t i : RandomOrder(run.file_bytes() / slot_bytes, seed)) {
    if (offsets.size() < slots.size()) offsets.push_back(i * slot_bytes);
  }
  const auto rate = [](uint64_t bytes, double seconds) {
    return static_cast<double>(bytes) / seconds / kGigabyte;
  };
  const uint64_t raw_bytes = offsets.size() * slot_bytes;
  // Nothing is stored now: the tier's file may be overwritten.
  ASSIGN_OR_RETURN(double seconds, raw.RunSeconds(DiskOperation::kWrite, offsets));
  figures.raw_write.Add(rate(raw_bytes, seconds));
  const uint64_t written_before = WrittenBytes();
  double cpu_before = CpuSeconds();
  ASSIGN_OR_RETURN(seconds, run.WriteAll());
  figures.write_cpu.Add(CpuPerGigabyte(cpu_before, slots.bytes()));
  figures.tier_write.Add(rate(slots.bytes(), seconds));
  figures.amplification.Add(static_cast<double>(WrittenBytes() - written_before) /
                            static_cast<double>(slots.bytes()));
  cpu_before = CpuSeconds();
  ASSIGN_OR_RETURN(seconds, raw.RunSeconds(DiskOperation::kRead, offsets));
  figures.raw_read_cpu.Add(CpuPerGigabyte(cpu_before, raw_bytes));
  figures.raw_read.Add(rate(raw_bytes, seconds));
  cpu_before = CpuSeconds();
  ASSIGN_OR_RETURN(seconds, run.ReadAll(seed, TierRun::Compare::kNo));
  figures.read_cpu.Add(CpuPerGigabyte(cpu_before, slots.bytes()));
  figures.tier_read.Add(rate(slots.bytes(), seconds));
  Poison(slots.sinks());
  RETURN_IF_ERROR(run.ReadAll(seed + 1000, TierRun::Compare::kYes).status());
  run.ReleaseAll();
  return absl::OkStatus();
}

void AddFigures(const Figures& figures, const std::string& size, bool is_judged, Report& report) {
  const std::string raw = absl::StrCat("raw io_uring on the same file, depth ", kDepth);
  Result result = RateResult("nvme/read/" + size, figures.tier_read, figures.raw_read, raw);
  if (is_judged) result.budget = RatioBudget("P10", 0.95);
  report.Add(std::move(result));
  result = RateResult("nvme/write/" + size, figures.tier_write, figures.raw_write, raw);
  if (is_judged) result.budget = RatioBudget("P10", 0.95);
  report.Add(std::move(result));
  result = MakeResult("nvme/read_cpu/" + size, "s/GB", Better::kLower, figures.read_cpu);
  result.ceiling = Ceiling{.value = figures.raw_read_cpu.Median(), .name = raw};
  if (is_judged) result.budget = ValueBudget("P10", 0.10);
  report.Add(std::move(result));
  report.Add(MakeResult("nvme/write_cpu/" + size, "s/GB", Better::kLower, figures.write_cpu));
  result =
      MakeResult("nvme/write_amplification/" + size, "x", Better::kLower, figures.amplification);
  result.ceiling = Ceiling{.value = 1, .name = "the pages alone"};
  if (is_judged) result.budget = ValueBudget("P10", 1.02);
  report.Add(std::move(result));
}

}  // namespace

absl::Status MeasureNvmeTier(const Settings& settings, uint64_t page_bytes, Report& report) {
  const std::string size = SizeName(page_bytes);
  ShowProgress(absl::StrCat("the tier, slices of ", size));
  ASSIGN_OR_RETURN(const WorkFolder folder, WorkFolder::Create(settings.work_dir));
  ASSIGN_OR_RETURN(const Slots slots, Slots::Make(settings.set_bytes, page_bytes));
  ASSIGN_OR_RETURN(const auto run, TierRun::Start(folder / "nvme", slots));
  ASSIGN_OR_RETURN(RawDisk raw, RawDisk::Open({.path = folder / "nvme/pages",
                                               .depth = kDepth,
                                               .operation_bytes = slots.shape().slot_bytes()}));
  // Preallocated blocks that were never written cost more to write and nothing to read.
  std::vector<uint64_t> everywhere;
  for (uint64_t at = 0; at + slots.shape().slot_bytes() <= run->file_bytes();
       at += slots.shape().slot_bytes()) {
    everywhere.push_back(at);
  }
  RETURN_IF_ERROR(raw.RunSeconds(DiskOperation::kWrite, everywhere).status());
  Figures warm_up, figures;
  RETURN_IF_ERROR(Repeat(*run, raw, slots, 1, warm_up));
  for (int i = 0; i < settings.repeats; ++i) {
    RETURN_IF_ERROR(Repeat(*run, raw, slots, static_cast<uint64_t>(i) + 2, figures));
  }
  AddFigures(figures, size, page_bytes >= (uint64_t{1} << 20), report);
  return absl::OkStatus();
}

}  // namespace kvstore::bench
