#include <optional>
#include <utility>

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

constexpr absl::Duration kPassTime = absl::Minutes(2);

// One operation on all batches, repeated.
struct Passes {
  Sample rates;                           // GB/s, one value a pass
  Sample batches;                         // ms, one value a batch
  double client_cpu = 0, daemon_cpu = 0;  // seconds, all passes
  uint64_t bytes = 0;

  double ClientCpuPerGigabyte() const { return client_cpu / Gigabytes(); }
  double DaemonCpuPerGigabyte() const { return daemon_cpu / Gigabytes(); }
  double Tail() const { return batches.Percentile(0.99) / batches.Percentile(0.5); }

 private:
  double Gigabytes() const { return static_cast<double>(bytes) / kGigabyte; }
};

class PageRun {
 public:
  PageRun(Daemon& daemon, client::Client& client, client::Namespace ns, PageSet set, SetMemory out)
      : daemon_(daemon),
        client_(client),
        ns_(std::move(ns)),
        set_(std::move(set)),
        out_(std::move(out)) {}

  // Puts, gets and verifies everything once, each beside its ceiling.
  absl::Status Repeat(uint64_t seed) {
    order_ = RandomOrder(set_.num_batches(), seed);
    set_.NextGeneration();
    Poison(out_);
    RETURN_IF_ERROR(Pass(copy, [this](size_t i) { return Copy(i); }));
    RETURN_IF_ERROR(Pass(put, [this](size_t i) { return Put(i); }));
    Poison(out_);
    RETURN_IF_ERROR(Pass(get, [this](size_t i) { return Get(i); }));
    RETURN_IF_ERROR(set_.CheckSame(out_));
    RETURN_IF_ERROR(Pass(read, [this](size_t i) { return Read(i); }));
    return Pass(verify, [this](size_t i) { return Verify(i); });
  }
  absl::Status RepeatRedis(RedisPeer& redis) {
    RETURN_IF_ERROR(redis.FlushAll());
    ASSIGN_OR_RETURN(double server_cpu, redis.ServerCpuSeconds());
    RETURN_IF_ERROR(Pass(redis_set, [&](size_t i) {
      return redis.Set(RedisKey(i), set_.batch(i), set_.page_bytes());
    }));
    // Seconds of the MGETs alone: comparing the values happens between them.
    double seconds = 0;
    for (const uint32_t i : order_) {
      ASSIGN_OR_RETURN(const double one, redis.Get(RedisKey(i), set_.batch(i), set_.page_bytes()));
      redis_get.batches.Add(one * 1e3);
      seconds += one;
    }
    redis_get.rates.Add(static_cast<double>(set_.bytes()) / seconds / kGigabyte);
    ASSIGN_OR_RETURN(const double server_cpu_after, redis.ServerCpuSeconds());
    redis_get.daemon_cpu += server_cpu_after - server_cpu;
    redis_get.bytes += set_.bytes();
    return redis.FlushAll();
  }
  // What a first pass leaves behind is not what a store that has run for a while does.
  Passes TakePut() { return std::exchange(put, {}); }
  void Forget() { copy = put = get = read = verify = {}; }

  uint64_t page_bytes() const { return set_.page_bytes(); }
  Passes copy, put, get, read, verify, redis_set, redis_get;

 private:
  template <typename Operation>
  absl::Status Pass(Passes& passes, Operation operation) {
    const double client_before = CpuSeconds(), daemon_before = daemon_.CpuSeconds();
    const Stopwatch watch;
    for (const uint32_t i : order_) {
      const Stopwatch batch;
      RETURN_IF_ERROR(operation(i));
      passes.batches.Add(batch.Seconds() * 1e3);
    }
    passes.rates.Add(static_cast<double>(set_.bytes()) / watch.Seconds() / kGigabyte);
    passes.client_cpu += CpuSeconds() - client_before;
    passes.daemon_cpu += daemon_.CpuSeconds() - daemon_before;
    passes.bytes += set_.bytes();
    return absl::OkStatus();
  }

  std::span<std::byte> out(size_t i) const { return out_.piece(i, set_.batch_bytes()); }
  std::string RedisKey(size_t i) const { return absl::StrCat(set_.page_bytes(), "/", i); }

  absl::Status Copy(size_t i) {
    std::vector<uint32_t> pieces(PageSet::kBatchBlocks);
    for (uint32_t page = 0; page < pieces.size(); ++page) {
      pieces[page] = static_cast<uint32_t>(i) * PageSet::kBatchBlocks + page;
    }
    CopySeconds(out_, set_.memory(), set_.page_bytes(), pieces);
    return absl::OkStatus();
  }
  absl::Status Read(size_t i) {
    ReadSeconds(set_.batch(i));
    return absl::OkStatus();
  }
  absl::Status Put(size_t i) {
    ASSIGN_OR_RETURN(const client::PutResult result,
                     client_.Put(ns_, set_.hashes(i), set_.batch(i)));
    if (result.stored_blocks == PageSet::kBatchBlocks) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("batch ", i, ": ", result.stored_blocks, " of ",
                                            PageSet::kBatchBlocks, " blocks were stored"));
  }
  absl::Status Get(size_t i) {
    ASSIGN_OR_RETURN(const client::GetResult result, client_.Get(ns_, set_.hashes(i), out(i)));
    if (result.delivered_blocks == PageSet::kBatchBlocks) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("batch ", i, ": ", result.delivered_blocks, " of ",
                                            PageSet::kBatchBlocks, " blocks were delivered"));
  }
  absl::Status Verify(size_t i) {
    ASSIGN_OR_RETURN(client::Lease lease,
                     client_.Acquire(ns_, set_.hashes(i), client::HottestTier::kDram));
    const absl::Time deadline = absl::Now() + kPassTime;
    for (uint32_t block = 0; block < PageSet::kBatchBlocks; ++block) {
      RETURN_IF_ERROR(lease.VerifyPage(block, deadline));
    }
    return absl::OkStatus();
  }

  Daemon& daemon_;
  client::Client& client_;
  const client::Namespace ns_;
  PageSet set_;
  const SetMemory out_;
  std::vector<uint32_t> order_;
};

void AddCpu(const std::string& operation, const std::string& size, const Passes& passes,
            Report& report) {
  report.Add(MakeResult(absl::StrCat("store/", operation, "_cpu_client/", size), "s/GB",
                        Better::kLower, passes.ClientCpuPerGigabyte()));
  report.Add(MakeResult(absl::StrCat("store/", operation, "_cpu_daemon/", size), "s/GB",
                        Better::kLower, passes.DaemonCpuPerGigabyte()));
}

void AddPages(const PageRun& run, const Passes& first_put, Report& report) {
  const std::string size = SizeName(run.page_bytes());
  const std::string memcpy_name = absl::StrCat("memcpy of the same set in pieces of ", size);
  Result result = RateResult("store/get/" + size, run.get.rates, run.copy.rates, memcpy_name);
  result.budget = RatioBudget("P12", 0.9);
  report.Add(std::move(result));
  result = MakeResult("store/get_tail/" + size, "p99/p50", Better::kLower, run.get.Tail());
  result.ceiling = Ceiling{.value = run.copy.Tail(), .name = "that of memcpy of the same batches"};
  result.budget = ValueBudget("P12", 1.5);
  report.Add(std::move(result));
  report.Add(RateResult("store/put/" + size, run.put.rates, run.copy.rates, memcpy_name));
  report.Add(
      RateResult("store/put_first_touch/" + size, first_put.rates, run.copy.rates, memcpy_name));
  result = RateResult("store/verify/" + size, run.verify.rates, run.read.rates,
                      "reading the same set once");
  result.budget = ValueBudget("P12", 10);
  report.Add(std::move(result));
  AddCpu("get", size, run.get, report);
  AddCpu("put", size, run.put, report);
}

void AddRedis(const PageRun& run, Report& report) {
  const std::string size = SizeName(run.page_bytes());
  report.Add(
      MakeResult("store/get/" + size + "/redis", "GB/s", Better::kHigher, run.redis_get.rates));
  report.Add(
      MakeResult("store/put/" + size + "/redis", "GB/s", Better::kHigher, run.redis_set.rates));
  report.Add(MakeResult("store/put_get_cpu_server/" + size + "/redis", "s/GB", Better::kLower,
                        run.redis_get.DaemonCpuPerGigabyte()));
  Result result = MakeResult("store/get_over_redis/" + size, "x", Better::kHigher,
                             run.get.rates.Median() / run.redis_get.rates.Median());
  result.budget = ValueBudget("P12", 4);
  report.Add(std::move(result));
}

}  // namespace

absl::Status MeasurePages(const Settings& settings, uint64_t page_bytes, RedisPeer* redis,
                          Report& report) {
  ShowProgress(absl::StrCat("pages of ", SizeName(page_bytes)));
  ASSIGN_OR_RETURN(PageSet set, PageSet::Make(settings.set_bytes, page_bytes, 21));
  ASSIGN_OR_RETURN(SetMemory out, SetMemory::Make(set.bytes()));
  // Room for a set and a quarter: a put evicts pages of the pass before.
  const NamespaceSpec spec = PageSpec(absl::StrCat("kvbench-", page_bytes), page_bytes);
  const uint64_t num_pages = set.num_batches() * PageSet::kBatchBlocks;
  const uint64_t dram_bytes =
      std::max<uint64_t>(num_pages * spec.shape.slot_bytes() * 5 / 4, uint64_t{64} << 20);
  ASSIGN_OR_RETURN(const auto daemon, Daemon::Start({.bin_dir = settings.bin_dir,
                                                     .work_dir = settings.work_dir,
                                                     .dram_bytes = dram_bytes}));
  ASSIGN_OR_RETURN(const auto client, daemon->Connect());
  ASSIGN_OR_RETURN(client::Namespace ns, client->Open("pages", spec));
  PageRun run(*daemon, *client, std::move(ns), std::move(set), std::move(out));
  RETURN_IF_ERROR(run.Repeat(1));
  const Passes first_put = run.TakePut();
  RETURN_IF_ERROR(run.Repeat(2));  // the rest of the memory is touched
  run.Forget();
  for (int repeat = 0; repeat < settings.repeats; ++repeat) {
    RETURN_IF_ERROR(run.Repeat(static_cast<uint64_t>(repeat) + 3));
    if (redis != nullptr) RETURN_IF_ERROR(run.RepeatRedis(*redis));
  }
  AddPages(run, first_put, report);
  if (redis != nullptr) AddRedis(run, report);
  return absl::OkStatus();
}

}  // namespace kvstore::bench
