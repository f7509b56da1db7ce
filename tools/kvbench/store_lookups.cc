#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
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
namespace {

constexpr uint64_t kPageBytes = 4096;  // no byte of them is read
constexpr uint32_t kBlocksMax = 8192;
// What a block takes on the wire at least: its hash in the request; tier, slab, slot, generation
// and checksum in the reply.
constexpr uint32_t kRequestBytesPerBlock = 32;
constexpr uint32_t kReplyBytesPerBlock = 26;

std::vector<uint32_t> RandomTokens(size_t count, uint64_t seed) {
  std::vector<uint32_t> tokens(count);
  RandomWords words(seed);
  for (uint32_t& token : tokens) token = static_cast<uint32_t>(words.Below(128'000));
  return tokens;
}

struct Lookups {
  Sample p50, p99, floor;  // ms, one value a round
  uint64_t calls = 0;
  double daemon_ms = 0;  // CPU
};

absl::StatusOr<Lookups> TimeLookups(const Settings& settings, Daemon& daemon,
                                    client::Client& client, const client::Namespace& ns,
                                    std::span<const BlockHash> hashes, EchoProcess& echo) {
  const int calls = settings.is_quick() ? 20 : 200;
  const auto num_blocks = static_cast<uint32_t>(hashes.size());
  Lookups out;
  const double cpu_before = daemon.CpuSeconds();
  for (int round = 0; round <= settings.repeats; ++round) {
    Sample times, floor;
    for (int call = 0; call < calls; ++call) {
      const Stopwatch watch;
      ASSIGN_OR_RETURN(client::Lease lease, client.Acquire(ns, hashes, client::HottestTier::kDram));
      times.Add(watch.Seconds() * 1e3);
      if (lease.matched_blocks() != num_blocks) {
        return absl::InternalError(absl::StrCat(lease.matched_blocks(), " of ", num_blocks));
      }
      lease.Release();
      ASSIGN_OR_RETURN(const double seconds,
                       echo.RoundTripSeconds(num_blocks * kRequestBytesPerBlock,
                                             num_blocks * kReplyBytesPerBlock));
      floor.Add(seconds * 1e3);
    }
    if (round == 0) continue;  // warm-up
    out.p50.Add(times.Median());
    out.p99.Add(times.Percentile(0.99));
    out.floor.Add(floor.Median());
  }
  out.calls = static_cast<uint64_t>(calls) * static_cast<uint64_t>(settings.repeats + 1);
  out.daemon_ms = (daemon.CpuSeconds() - cpu_before) * 1e3 / static_cast<double>(out.calls);
  return out;
}

struct LookupBudget {
  std::optional<double> p50, p99;  // ms
};

void AddLookups(const Lookups& times, uint32_t num_blocks, LookupBudget budget, Report& report) {
  const Ceiling ceiling{.value = times.floor.Median(),
                        .name = "the same bytes over a bare Unix socket and back"};
  Result result =
      MakeResult(absl::StrCat("store/acquire/", num_blocks), "ms", Better::kLower, times.p50);
  result.ceiling = ceiling;
  if (budget.p50) result.budget = ValueBudget("P8", *budget.p50);
  report.Add(std::move(result));
  result =
      MakeResult(absl::StrCat("store/acquire_p99/", num_blocks), "ms", Better::kLower, times.p99);
  result.ceiling = ceiling;
  if (budget.p99) result.budget = ValueBudget("P8", *budget.p99);
  report.Add(std::move(result));
  report.Add(MakeResult(absl::StrCat("store/acquire_cpu_daemon/", num_blocks), "ms", Better::kLower,
                        times.daemon_ms));
}

// The client's own part: tokens to block hashes, one thread. CPU time.
void MeasureHashing(const Settings& settings, Report& report) {
  const size_t num_tokens = settings.is_quick() ? 1 << 16 : 1 << 20;
  const std::vector<uint32_t> tokens = RandomTokens(num_tokens, 3);
  const std::span<const std::byte> bytes = std::as_bytes(std::span(tokens));
  for (const uint32_t block_tokens : {16u, 256u}) {
    client::Namespace ns;
    ns.spec = PageSpec("kvbench", kPageBytes, block_tokens);
    ns.fingerprint = ns.spec.ComputeFingerprint();
    Sample ours, plain;
    for (int i = 0; i < settings.repeats; ++i) {
      const CpuStopwatch watch;
      const std::vector<BlockHash> hashes = ns.Hash(tokens);
      ours.Add(static_cast<double>(bytes.size()) / watch.Seconds() / kGigabyte);
      plain.Add(static_cast<double>(bytes.size()) / Sha256Seconds(bytes) / kGigabyte);
    }
    Result result = RateResult(absl::StrCat("store/hash/", block_tokens), ours, plain,
                               "one SHA-256 over all tokens");
    result.budget = ValueBudget("P8", 1.5);
    report.Add(std::move(result));
  }
  // A prompt of a conversation: as long, of which the last 1,024 tokens are new.
  client::Namespace ns;
  ns.spec = PageSpec("kvbench", kPageBytes, 16);
  ns.fingerprint = ns.spec.ComputeFingerprint();
  Sample grown;
  for (int i = 0; i < settings.repeats; ++i) {
    HashChain chain = ns.Chain();
    chain.Hash(std::span(tokens).first(tokens.size() - 1024));
    const CpuStopwatch watch;
    chain.Hash(tokens);
    grown.Add(static_cast<double>(bytes.size()) / watch.Seconds() / kGigabyte);
  }
  Result result = MakeResult("store/hash_growing/16", "GB/s", Better::kHigher, grown);
  result.budget = ValueBudget("P8", 1.5);
  report.Add(std::move(result));
  report.AddNote("store/hash_growing: the same prompt again with 1,024 new tokens behind it");
  report.AddNote("store/hash/N: bytes of tokens in blocks of N that one core turns into hashes");
}

}  // namespace

absl::Status MeasureLookups(const Settings& settings, EchoProcess& echo, Report& report) {
  ShowProgress("lookups");
  MeasureHashing(settings, report);
  ASSIGN_OR_RETURN(const auto daemon, Daemon::Start({.bin_dir = settings.bin_dir,
                                                     .work_dir = settings.work_dir,
                                                     .dram_bytes = uint64_t{256} << 20}));
  ASSIGN_OR_RETURN(const auto client, daemon->Connect());
  ASSIGN_OR_RETURN(const client::Namespace ns,
                   client->Open("lookups", PageSpec("kvbench-lookups", kPageBytes)));
  const std::vector<BlockHash> hashes =
      ns.Hash(RandomTokens(size_t{kBlocksMax} * ns.spec.block_tokens, 4));
  ASSIGN_OR_RETURN(const SetMemory pages, SetMemory::Make(kBlocksMax * kPageBytes));
  FillRandom(pages.bytes(), 6);
  ASSIGN_OR_RETURN(const client::PutResult put, client->Put(ns, hashes, pages.bytes()));
  if (put.stored_blocks != kBlocksMax) {
    return absl::InternalError(absl::StrCat("only ", put.stored_blocks, " blocks were stored"));
  }
  const std::span<const BlockHash> prefix(hashes);
  const std::pair<uint32_t, LookupBudget> cases[] = {
      {32, {}}, {2048, {.p50 = 1.0, .p99 = 2.0}}, {kBlocksMax, {.p50 = 3.0, .p99 = std::nullopt}}};
  for (const auto& [num_blocks, budget] : cases) {
    ASSIGN_OR_RETURN(const Lookups times,
                     TimeLookups(settings, *daemon, *client, ns, prefix.first(num_blocks), echo));
    AddLookups(times, num_blocks, budget, report);
  }
  return absl::OkStatus();
}

}  // namespace kvstore::bench
