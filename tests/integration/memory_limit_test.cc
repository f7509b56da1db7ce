// Little memory: a cgroup with a limit, and no right to lock memory. The daemon keeps to its budget
// or refuses to start; it is never killed and never fails for lack of a lock.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "tests/integration/daemon_process.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::Namespace;
using ::testing::HasSubstr;

constexpr uint64_t kMiB = uint64_t{1} << 20;

// A memory cgroup (version 1) of our own, below ours.
class MemoryCgroup {
 public:
  explicit MemoryCgroup(uint64_t bytes) {
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
      const size_t at = line.find(":memory:");
      if (at == std::string::npos) continue;
      folder_ = "/sys/fs/cgroup/memory" + line.substr(at + 8) + "/kvstore-test-" +
                std::to_string(getpid());
    }
    if (folder_.empty() || mkdir(folder_.c_str(), 0755) != 0) {
      folder_.clear();
      return;
    }
    std::ofstream(folder_ + "/memory.limit_in_bytes") << bytes;
  }
  ~MemoryCgroup() {
    if (folder_.empty()) return;
    Eventually(absl::Seconds(5), [&] { return rmdir(folder_.c_str()) == 0; });
  }
  bool is_usable() const { return !folder_.empty(); }
  const std::string& folder() const { return folder_; }
  uint64_t Number(const std::string& file) const {
    uint64_t value = 0;
    std::ifstream(folder_ + "/" + file) >> value;
    return value;
  }

 private:
  std::string folder_;
};

void PutMany(Client& client, const Namespace& ns, uint32_t first_seed, uint32_t prefixes) {
  for (uint32_t seed = first_seed; seed < first_seed + prefixes; ++seed) {
    const std::vector<BlockHash> hashes = ns.Hash(Tokens(ns.spec, 64, seed));  // 4 MiB
    // A disk behind other work takes dirty blocks slowly: then there is no page for a moment.
    ASSERT_TRUE(Eventually(absl::Seconds(20), [&] {
      const auto put = client.Put(ns, hashes, PagesBytes(ns.spec, hashes));
      return put.ok() && put->stored_blocks + put->existing_blocks == hashes.size();
    }));
    std::vector<std::byte> pages(hashes.size() * ns.spec.shape.page_bytes());
    const auto got = client.Get(ns, hashes, pages);
    ASSERT_TRUE(got.ok()) << got.status();
    ASSERT_EQ(pages, PagesBytes(ns.spec, hashes));
  }
}

TEST(MemoryLimit, ADaemonInASmallCgroupKeepsToItsBudget) {
  const MemoryCgroup cgroup(256 * kMiB);
  if (!cgroup.is_usable()) GTEST_SKIP() << "needs the right to make a memory cgroup (version 1)";
  DaemonProcess daemon;
  daemon.Start(
      {.sets = {"tier.dram.bytes=96MiB", "tier.nvme.dirs=[\"" + daemon.folder() + "/nvme\"]",
                "tier.nvme.bytes=256MiB"},
       .memory_cgroup = cgroup.folder()});
  std::unique_ptr<Client> client = daemon.Connect();
  const absl::StatusOr<Namespace> ns = client->Open("small", SmallSpec());
  ASSERT_TRUE(ns.ok()) << ns.status();
  PutMany(*client, *ns, 1, 60);  // 240 MiB through 96
  const uint64_t warm = daemon.ResidentBytes();
  PutMany(*client, *ns, 100, 120);
  const uint64_t later = daemon.ResidentBytes();
  std::printf(
      "%.1f MiB of its own when warm, %.1f MiB after twice as much; the cgroup's most %.1f\n",
      static_cast<double>(warm) / kMiB, static_cast<double>(later) / kMiB,
      static_cast<double>(cgroup.Number("memory.max_usage_in_bytes")) / kMiB);
  // 5 %, and what the allocator keeps of it.
  EXPECT_LE(later, warm + warm / 20 + 8 * kMiB);
  EXPECT_EQ(daemon.Status().health(), v1::StatusResponse::HEALTH_SERVING);
}

TEST(MemoryLimit, TiersThatDoNotFitAreRefusedAtStart) {
  const MemoryCgroup cgroup(128 * kMiB);
  if (!cgroup.is_usable()) GTEST_SKIP() << "needs the right to make a memory cgroup (version 1)";
  DaemonProcess daemon;
  EXPECT_EQ(daemon.RunToExit(
                {"--set", "server.listen=" + daemon.target(), "--set", "tier.dram.bytes=1GiB"},
                {.memory_cgroup = cgroup.folder()}),
            2);
  EXPECT_THAT(daemon.Log(), HasSubstr("more than the memory of this machine or cgroup"));
  EXPECT_THAT(daemon.Log(), HasSubstr("at most 128MiB"));
}

TEST(MemoryLimit, WithoutTheRightToLockMemoryItServesAndSaysSo) {
  DaemonProcess daemon;
  daemon.Start(
      {.sets = {"tier.dram.bytes=64MiB", "tier.nvme.dirs=[\"" + daemon.folder() + "/nvme\"]",
                "tier.nvme.bytes=128MiB"},
       .locked_bytes = kMiB});
  std::unique_ptr<Client> client = daemon.Connect();
  const absl::StatusOr<Namespace> ns = client->Open("small", SmallSpec());
  ASSERT_TRUE(ns.ok()) << ns.status();
  PutMany(*client, *ns, 1, 30);
  const v1::StatusResponse status = daemon.Status();
  EXPECT_EQ(status.health(), v1::StatusResponse::HEALTH_DEGRADED);
  ASSERT_GT(status.degraded_size(), 0);
  EXPECT_THAT(status.degraded(0), HasSubstr("RLIMIT_MEMLOCK"));
}

}  // namespace
}  // namespace kvstore::testing
