// One tenant takes what it can get; another one's requests are served as before.
//
// What is compared is the p99 of a tenant's requests while another one floods the daemon, and while
// the flooding threads burn the same processor against nothing: phases in turn, the median of the
// rounds' ratios. The daemon has a processor of its own, its clients share another one, and all of
// ours go before what else runs on this machine, in both phases alike.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

#include "kvstore/base/thread_preference.h"
#include "kvstore/base/unique_fd.h"
#include "tests/integration/daemon_process.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::HottestTier;
using client::Namespace;

constexpr uid_t kOtherUid = 54321;
constexpr size_t kBlocks = 32;
constexpr int kRequests = 300;
constexpr int kRounds = 5;
constexpr int kThreads = 10;
// The goal, held to where nothing else runs (KVSTORE_STRICT=1). Elsewhere a wake-up alone may take
// some ticks of 4 ms: only what is far above that fails.
constexpr double kFailAboveStrict = 1.5;
constexpr double kFailAbove = 4;
constexpr absl::Duration kAlwaysGood = absl::Milliseconds(40);
// What streams that nobody reads may hold, of kCallBytes, and the rest: gRPC's own buffers.
constexpr uint64_t kCallBytes = uint64_t{64} << 20;
constexpr uint64_t kGrowthMax = kCallBytes * 3 / 4 + (uint64_t{64} << 20);

void RunOn(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  ASSERT_EQ(sched_setaffinity(0, sizeof set, &set), 0);
}

// The other tenant's process. It begins by burning its processor.
class Flood {
 public:
  Flood(const DaemonProcess& daemon, const std::string& kind) {
    const std::string program = std::string(getenv("KVSTORE_BIN_DIR")) + "/../tests/flood_client";
    // By descriptor: the other uid may not be able to reach the build folder.
    const UniqueFd file(open(program.c_str(), O_RDONLY | O_CLOEXEC));
    const std::string target = daemon.target(), count = std::to_string(kThreads);
    int in[2], out[2];
    EXPECT_EQ(pipe2(in, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(out, O_CLOEXEC), 0);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(in[0], STDIN_FILENO);
      dup2(out[1], STDOUT_FILENO);
      setpriority(PRIO_PROCESS, 0, 0);
      if (setresgid(0, 0, 0) != 0 || setresuid(kOtherUid, kOtherUid, kOtherUid) != 0) _exit(99);
      const char* argv[] = {program.c_str(), target.c_str(), kind.c_str(), count.c_str(), nullptr};
      fexecve(file.get(), const_cast<char**>(argv), environ);
      _exit(98);
    }
    close(in[0]);
    close(out[1]);
    orders_.Reset(in[1]);
    answers_.Reset(out[0]);
    WaitFor('b');
  }
  ~Flood() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  // 'f': flood, 'b': burn. Returns once it does.
  void Do(char letter) {
    EXPECT_EQ(write(orders_.get(), &letter, 1), 1);
    WaitFor(letter);
  }

 private:
  void WaitFor(char letter) {
    char answer = 0;
    EXPECT_EQ(read(answers_.get(), &answer, 1), 1) << "the flood has ended";
    EXPECT_EQ(answer, letter);
  }
  pid_t pid_ = -1;
  UniqueFd orders_, answers_;
};

class Fairness : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root to become another uid";
    if (std::thread::hardware_concurrency() < 2) GTEST_SKIP() << "needs two processors";
    setpriority(PRIO_PROCESS, 0, -15);  // what we start has it too
    RunOn(1);
    daemon_.Start(
        {.sets = {"auth.allow_uids=" + std::to_string(kOtherUid), "tier.dram.bytes=256MiB",
                  "limits.call_bytes=" + std::to_string(kCallBytes) + "B"}});
    RunOn(0);
    PreferThisThread(ThreadPreference::kBeforeOthers);
    chmod(daemon_.folder().c_str(), 0750);  // the other uid keeps our group
    client_ = daemon_.Connect();
    const absl::StatusOr<Namespace> ns = client_->Open("victim", SmallSpec());
    ASSERT_TRUE(ns.ok()) << ns.status();
    ns_ = *ns;
    hashes_ = ns_.Hash(Tokens(ns_.spec, kBlocks, 7));
    ASSERT_TRUE(client_->Put(ns_, hashes_, PagesBytes(ns_.spec, hashes_)).ok());
  }
  // The p99 of acquiring a prefix, copying its first page and letting it go.
  absl::Duration Measure() {
    std::vector<absl::Duration> times;
    std::vector<std::byte> page(ns_.spec.shape.page_bytes());
    const std::vector<std::byte> expected = PageBytes(ns_.spec, hashes_[0]);
    for (int i = 0; i < kRequests; ++i) {
      const absl::Time start = absl::Now();
      {
        auto lease = client_->Acquire(ns_, hashes_, HottestTier::kDram, start + absl::Seconds(2));
        EXPECT_TRUE(lease.ok()) << lease.status();
        if (!lease.ok()) continue;
        misses_ += lease->matched_blocks() < kBlocks;
        if (lease->matched_blocks() > 0 &&
            lease->CopyPage(0, page.data(), start + absl::Seconds(2)).ok()) {
          EXPECT_EQ(page, expected) << "wrong bytes";
        }
      }
      times.push_back(absl::Now() - start);
      absl::SleepFor(absl::Milliseconds(2));
    }
    std::ranges::sort(times);
    return times[times.size() * 99 / 100];
  }

  DaemonProcess daemon_;
  std::unique_ptr<Client> client_;
  Namespace ns_;
  std::vector<BlockHash> hashes_;
  int misses_ = 0;
};

TEST_P(Fairness, AnotherTenantsFloodDoesNotSlowRequests) {
  Flood flood(daemon_, GetParam());
  (void)Measure();
  const uint64_t before = daemon_.ResidentBytes();
  uint64_t grown = 0;
  std::vector<double> ratios;
  std::vector<absl::Duration> times;
  for (int round = 0; round < kRounds; ++round) {
    const absl::Duration alone = Measure();
    flood.Do('f');
    absl::SleepFor(absl::Milliseconds(200));
    const absl::Duration flooded = Measure();
    grown = std::max(grown, daemon_.ResidentBytes() - before);
    flood.Do('b');
    absl::SleepFor(absl::Milliseconds(100));
    std::printf("p99 %.3f ms alone, %.3f ms under %s: %.2f times; grown by %.1f MiB\n",
                absl::ToDoubleMilliseconds(alone), absl::ToDoubleMilliseconds(flooded), GetParam(),
                absl::FDivDuration(flooded, alone), static_cast<double>(grown) / (1 << 20));
    ratios.push_back(absl::FDivDuration(flooded, alone));
    times.push_back(flooded);
  }
  std::ranges::sort(ratios);
  std::ranges::sort(times);
  const double ratio = ratios[kRounds / 2];
  std::printf("median: %.2f times\n", ratio);
  const bool is_strict = getenv("KVSTORE_STRICT") != nullptr;
  EXPECT_TRUE(!is_strict || ratio <= kFailAboveStrict) << ratio << " times";
  EXPECT_TRUE(ratio <= kFailAbove || times[kRounds / 2] <= kAlwaysGood)
      << ratio << " times, " << times[kRounds / 2];
  EXPECT_LE(grown, kGrowthMax) << "queues grow";
  EXPECT_EQ(misses_, 0) << "the flood evicted blocks that are in use all the time";
}

// Why it holds: the scheduler is fair by thread, and a flood keeps many of them busy that parse and
// write. The two that every tenant waits for must not be one of seven.
TEST(FairnessOfThreads, WhatParsesAndWritesGivesWayToTheCore) {
  const int before = getpriority(PRIO_PROCESS, 0);
  DaemonProcess daemon;
  daemon.Start();
  std::unique_ptr<Client> client = daemon.Connect();  // as gRPC starts threads of its own by then
  ASSERT_TRUE(client->Open("any", SmallSpec()).ok());
  int preferred = 0, giving_way = 0;
  for (const auto& task :
       std::filesystem::directory_iterator("/proc/" + std::to_string(daemon.pid()) + "/task")) {
    const auto thread = static_cast<id_t>(std::stoul(task.path().filename().string()));
    std::string name;
    std::getline(std::ifstream(task.path() / "comm"), name);
    const int niceness = getpriority(PRIO_PROCESS, thread);
    const auto is_one_of = [&name](std::initializer_list<const char*> names) {
      return std::ranges::any_of(names, [&](const char* n) { return name.starts_with(n); });
    };
    if (is_one_of({"kv-core", "kv-memory"})) {
      ++preferred;
      EXPECT_LE(niceness, before) << name;
    } else if (!is_one_of({"kvstored", "dram-", "spdlog"})) {
      ++giving_way;
      EXPECT_GE(niceness, std::min(before + 10, 19)) << name;
    }
  }
  EXPECT_EQ(preferred, 2);
  EXPECT_GE(giving_way, 6) << "edge threads, doors, gRPC's own";
}

INSTANTIATE_TEST_SUITE_P(Kinds, Fairness, ::testing::Values("calls", "queued", "saves", "unread"),
                         [](const auto& kind) { return std::string(kind.param); });

}  // namespace
}  // namespace kvstore::testing
