// One tenant takes what it can get; another one's requests are served as before.
//
// The time of a request is compared with the same tenant's own, measured just before without the
// flood. The figure to reach is a p99 of 1.5 times (docs/reliability.md has what was measured);
// what fails the test is far above it, since other programs run on this machine.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "kvstore/base/unique_fd.h"
#include "tests/integration/daemon_process.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::HottestTier;
using client::Namespace;

constexpr uid_t kOtherUid = 54321;
constexpr size_t kBlocks = 32;
constexpr int kRequests = 400;
constexpr double kFailAbove = 5;
constexpr absl::Duration kAlwaysGood = absl::Milliseconds(20);

// The other tenant's process.
class Flood {
 public:
  Flood(const DaemonProcess& daemon, const std::string& kind, int threads) {
    const std::string program = std::string(getenv("KVSTORE_BIN_DIR")) + "/../tests/flood_client";
    // By descriptor: the other uid may not be able to reach the build folder.
    const UniqueFd file(open(program.c_str(), O_RDONLY | O_CLOEXEC));
    const std::string target = daemon.target(), count = std::to_string(threads);
    int out[2];
    EXPECT_EQ(pipe2(out, O_CLOEXEC), 0);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(out[1], STDOUT_FILENO);
      if (setresgid(0, 0, 0) != 0 || setresuid(kOtherUid, kOtherUid, kOtherUid) != 0) _exit(99);
      const char* argv[] = {program.c_str(), target.c_str(), kind.c_str(), count.c_str(), nullptr};
      fexecve(file.get(), const_cast<char**>(argv), environ);
      _exit(98);
    }
    close(out[1]);
    char ready[5];
    EXPECT_EQ(read(out[0], ready, sizeof ready), 5) << "the flood did not begin";
    close(out[0]);
  }
  ~Flood() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

 private:
  pid_t pid_ = -1;
};

class Fairness : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root to become another uid";
    daemon_.Start(
        {.sets = {"auth.allow_uids=" + std::to_string(kOtherUid), "tier.dram.bytes=256MiB"}});
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
  const absl::Duration alone = Measure();
  const uint64_t before = daemon_.ResidentBytes();
  absl::Duration flooded;
  {
    const Flood flood(daemon_, GetParam(), 10);
    absl::SleepFor(absl::Milliseconds(300));
    flooded = Measure();
    // limits.call_bytes and gRPC's own quota of 256 MiB; streams that are opened, not read and
    // cancelled in turn were seen to take 150 MiB.
    EXPECT_LE(daemon_.ResidentBytes(), before + (uint64_t{320} << 20)) << "queues grow";
  }
  std::printf("p99 %.2f ms alone, %.2f ms under %s: %.2f times\n",
              absl::ToDoubleMilliseconds(alone), absl::ToDoubleMilliseconds(flooded), GetParam(),
              absl::FDivDuration(flooded, alone));
  EXPECT_TRUE(flooded <= kFailAbove * alone || flooded <= kAlwaysGood)
      << flooded << " against " << alone;
  EXPECT_EQ(misses_, 0) << "the flood evicted blocks that are in use all the time";
  EXPECT_TRUE(Eventually(absl::Seconds(3),
                         [&] {
                           const v1::StatusResponse status = daemon_.Status();
                           return status.sessions() == 1 && status.leases() == 0 &&
                                  status.reservations() == 0;
                         }))
      << "left by the flood: " << daemon_.Status().ShortDebugString();
}

INSTANTIATE_TEST_SUITE_P(Kinds, Fairness, ::testing::Values("calls", "saves", "unread"),
                         [](const auto& kind) { return std::string(kind.param); });

}  // namespace
}  // namespace kvstore::testing
