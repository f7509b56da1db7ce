// The NVMe tier as a client sees it: loads through a daemon, and a restart.
#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kvstore/base/status_macros.h"
#include "tools/kvbench/daemon.h"
#include "tools/kvbench/nvme_parts.h"
#include "tools/kvbench/page_set.h"
#include "tools/kvbench/random_bytes.h"
#include "tools/kvbench/results.h"
#include "tools/kvbench/stopwatch.h"
#include "tools/kvbench/suites.h"

namespace kvstore::bench {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr absl::Duration kWriteBehindTime = absl::Minutes(5);

// Until everything that was put is on NVMe.
absl::Status WaitUntilWritten(Daemon& daemon, uint64_t pages) {
  const absl::Time end = absl::Now() + kWriteBehindTime;
  TierUse use;
  while (absl::Now() < end) {
    ASSIGN_OR_RETURN(use, daemon.Use(client::Tier::kNvme));
    if (use.pages >= pages && use.in_flight == 0) return absl::OkStatus();
    absl::SleepFor(absl::Milliseconds(20));
  }
  return absl::DeadlineExceededError(absl::StrCat(use.pages, " of ", pages,
                                                  " pages are on NVMe after ",
                                                  absl::FormatDuration(kWriteBehindTime)));
}

// Stores the batch, waiting where there is no space for it yet.
absl::Status PutAll(client::Client& client, const client::Namespace& ns,
                    std::span<const BlockHash> hashes, std::span<const std::byte> pages) {
  const absl::Time end = absl::Now() + absl::Minutes(1);
  while (absl::Now() < end) {
    const absl::StatusOr<client::PutResult> put = client.Put(ns, hashes, pages);
    if (put.ok() && put->stored_blocks + put->existing_blocks == hashes.size()) {
      return absl::OkStatus();
    }
    if (!put.ok() && !absl::IsResourceExhausted(put.status())) return put.status();
    absl::SleepFor(absl::Milliseconds(2));
  }
  return absl::DeadlineExceededError("the daemon has no space for a put");
}

}  // namespace

absl::Status MeasureNvmeLoads(const Settings& settings, Report& report) {
  ShowProgress("loads through a daemon");
  constexpr uint64_t kPageBytes = 2 * kMiB;
  ASSIGN_OR_RETURN(const PageSet set, PageSet::Make(settings.set_bytes, kPageBytes, 51));
  ASSIGN_OR_RETURN(const SetMemory out, SetMemory::Make(set.bytes()));
  const uint64_t tier_bytes = set.bytes() * 5 / 4 + 128 * kMiB;
  ASSIGN_OR_RETURN(const auto daemon, Daemon::Start({.bin_dir = settings.bin_dir,
                                                     .work_dir = settings.work_dir,
                                                     .dram_bytes = tier_bytes,
                                                     .nvme_bytes = tier_bytes + 64 * kMiB}));
  ASSIGN_OR_RETURN(const auto client, daemon->Connect());
  ASSIGN_OR_RETURN(const client::Namespace ns,
                   client->Open("loads", PageSpec("kvbench-loads", kPageBytes)));
  for (size_t i = 0; i < set.num_batches(); ++i) {
    RETURN_IF_ERROR(PutAll(*client, ns, set.hashes(i), set.batch(i)));
  }
  RETURN_IF_ERROR(WaitUntilWritten(*daemon, set.num_batches() * PageSet::kBatchBlocks));
  Sample rates, batches, client_cpu, daemon_cpu;
  for (int repeat = 0; repeat < settings.repeats; ++repeat) {
    RETURN_IF_ERROR(daemon->EvictAll(client::Tier::kDram));
    Poison(out);
    const double client_before = CpuSeconds(), daemon_before = daemon->CpuSeconds();
    const Stopwatch watch;
    for (const uint32_t i : RandomOrder(set.num_batches(), static_cast<uint64_t>(repeat))) {
      const Stopwatch batch;
      ASSIGN_OR_RETURN(const client::GetResult got,
                       client->Get(ns, set.hashes(i), out.piece(i, set.batch_bytes())));
      batches.Add(batch.Seconds() * 1e3);
      const uint64_t from_nvme = got.match.by_tier[static_cast<size_t>(client::Tier::kNvme)];
      if (got.delivered_blocks != PageSet::kBatchBlocks || from_nvme != got.delivered_blocks) {
        return absl::InternalError(absl::StrCat("batch ", i, ": ", got.delivered_blocks,
                                                " blocks, of them ", from_nvme, " from NVMe"));
      }
    }
    const auto gigabytes = static_cast<double>(set.bytes()) / kGigabyte;
    rates.Add(gigabytes / watch.Seconds());
    client_cpu.Add((CpuSeconds() - client_before) / gigabytes);
    daemon_cpu.Add((daemon->CpuSeconds() - daemon_before) / gigabytes);
    RETURN_IF_ERROR(set.CheckSame(out));
  }
  // The tier alone reached this in the same run.
  Result result = MakeResult("nvme/load/2MiB", "GB/s", Better::kHigher, rates);
  const auto tier = std::ranges::find(report.results(), "nvme/read/1MiB", &Result::name);
  if (tier != report.results().end()) {
    result.ceiling = Ceiling{.value = tier->median, .name = "nvme/read/1MiB: the tier alone"};
  }
  report.Add(std::move(result));
  report.Add(MakeResult("nvme/load_batch/64MiB", "ms", Better::kLower, batches));
  report.Add(MakeResult("nvme/load_cpu_client/2MiB", "s/GB", Better::kLower, client_cpu));
  report.Add(MakeResult("nvme/load_cpu_daemon/2MiB", "s/GB", Better::kLower, daemon_cpu));
  return absl::OkStatus();
}

namespace {

// Prompts of 512 small pages, as many as hold `blocks`.
class SmallPages {
 public:
  static constexpr uint32_t kChainBlocks = 512;
  static constexpr uint64_t kPageBytes = 4096;

  explicit SmallPages(uint64_t blocks)
      : num_chains_(std::max<uint64_t>(1, blocks / kChainBlocks)) {}
  uint64_t num_chains() const { return num_chains_; }
  uint64_t num_blocks() const { return num_chains_ * kChainBlocks; }
  static std::vector<BlockHash> hashes(uint64_t chain) {
    return RandomHashes(kChainBlocks, 9'000'000 + chain * 31);
  }
  static std::vector<std::byte> pages(uint64_t chain) {
    std::vector<std::byte> bytes(kChainBlocks * kPageBytes);
    FillRandom(bytes, 7'000'000 + chain * 37);
    return bytes;
  }

 private:
  const uint64_t num_chains_;
};

struct RestartTimes {
  double first_hit = 0, recovered = 0;  // seconds from the start of the process
};

absl::StatusOr<RestartTimes> TimeRestart(Daemon& daemon, const std::string& name,
                                         const SmallPages& pages, uint64_t seed) {
  RETURN_IF_ERROR(daemon.Stop());
  const Stopwatch watch;
  RETURN_IF_ERROR(daemon.Launch());
  RestartTimes times;
  const absl::Time end = absl::Now() + absl::Minutes(2);
  client::ClientOptions options;
  options.target = daemon.target();
  ASSIGN_OR_RETURN(const auto client, client::Client::Create(options));
  RETURN_IF_ERROR(client->WaitConnected(end));
  // A prompt that nobody chose for being found early.
  const uint64_t chain = RandomWords(seed).Below(pages.num_chains());
  const std::vector<BlockHash> hashes = SmallPages::hashes(chain);
  const std::vector<std::byte> expect = SmallPages::pages(chain);
  std::vector<std::byte> out(expect.size(), std::byte{0xa5});
  bool is_recovering = true;
  while (absl::Now() < end && (times.first_hit == 0 || is_recovering)) {
    if (times.first_hit == 0) {
      const auto ns = client->Find(name);
      const auto got = ns.ok() ? client->Get(*ns, hashes, out) : ns.status();
      if (got.ok() && got->delivered_blocks > 0) {
        times.first_hit = watch.Seconds();
        if (!std::equal(out.begin(), out.begin() + got->delivered_blocks * SmallPages::kPageBytes,
                        expect.begin())) {
          return absl::DataLossError("WRONG BYTES after a restart");
        }
      }
    }
    const auto recovering = daemon.IsRecovering();
    is_recovering = !recovering.ok() || *recovering;
    if (!is_recovering && times.recovered == 0) times.recovered = watch.Seconds();
    absl::SleepFor(absl::Milliseconds(5));
  }
  if (times.first_hit == 0) return absl::DeadlineExceededError("no hit after the restart");
  return times;
}

}  // namespace

absl::Status MeasureRestart(const Settings& settings, Report& report) {
  const SmallPages pages(settings.restart_blocks);
  ShowProgress(absl::StrCat("a restart with ", pages.num_blocks(), " blocks on disk"));
  const NamespaceSpec spec = PageSpec("kvbench-restart", SmallPages::kPageBytes);
  const uint64_t bytes = pages.num_blocks() * spec.shape.slot_bytes();
  ASSIGN_OR_RETURN(
      const auto daemon,
      Daemon::Start({.bin_dir = settings.bin_dir,
                     .work_dir = settings.work_dir,
                     .dram_bytes = std::clamp(bytes * 5 / 4, 64 * kMiB, 2048 * kMiB),
                     .nvme_bytes = bytes * 5 / 4 + pages.num_blocks() * 640 + 256 * kMiB}));
  std::string name = "restart";
  {
    ASSIGN_OR_RETURN(const auto client, daemon->Connect());
    ASSIGN_OR_RETURN(const client::Namespace ns, client->Open(name, spec));
    const Stopwatch watch;
    for (uint64_t chain = 0; chain < pages.num_chains(); ++chain) {
      RETURN_IF_ERROR(PutAll(*client, ns, SmallPages::hashes(chain), SmallPages::pages(chain)));
    }
    RETURN_IF_ERROR(WaitUntilWritten(*daemon, pages.num_blocks()));
    report.AddNote(absl::StrCat("restart: ", pages.num_blocks(),
                                " blocks of 4 KiB were written in ", FormatNumber(watch.Seconds()),
                                " s"));
  }
  Sample first_hit, recovered;
  for (int repeat = 0; repeat < settings.repeats; ++repeat) {
    ASSIGN_OR_RETURN(const RestartTimes times,
                     TimeRestart(*daemon, name, pages, static_cast<uint64_t>(repeat)));
    first_hit.Add(times.first_hit * 1e3);
    recovered.Add(times.recovered * 1e3);
  }
  Result result = MakeResult(absl::StrCat("nvme/restart_first_hit/", pages.num_blocks()), "ms",
                             Better::kLower, first_hit);
  result.budget = ValueBudget("P14", 2000);
  report.Add(std::move(result));
  report.Add(MakeResult(absl::StrCat("nvme/restart_all/", pages.num_blocks()), "ms", Better::kLower,
                        recovered));
  report.AddNote(
      "restart: from the start of the process to the first page of a random prompt in the "
      "client's memory, checked; the page cache holds the index");
  return absl::OkStatus();
}

}  // namespace kvstore::bench
