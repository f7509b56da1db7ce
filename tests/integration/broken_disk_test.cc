// A whole daemon whose NVMe directory lies on a file system that hangs or is full: what DRAM holds
// is served as before, and the daemon ends when it is told to.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <atomic>
#include <thread>

#include "tests/integration/daemon_process.h"
#include "tests/integration/paired_times.h"
#include "tests/support/fault_fs/fault_fs_mount.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::HottestTier;
using client::Namespace;

constexpr size_t kHotBlocks = 32;
constexpr size_t kColdBlocks = 64;
constexpr absl::Duration kAlwaysGood = absl::Milliseconds(40);

class BrokenDisk : public ::testing::Test {
 protected:
  void SetUp() override {
    disk_ = FaultFsMount::Create();
    if (disk_ == nullptr) GTEST_SKIP() << FaultFsMount::kMissing;
    ASSERT_EQ(mkdir((disk_->path() + "/nvme").c_str(), 0700), 0);
    daemon_.Start({.sets = {"tier.nvme.dirs=" + disk_->path() + "/nvme", "tier.nvme.bytes=256MiB",
                            "tier.dram.bytes=128MiB"}});
    client_ = daemon_.Connect();
    cold_ = Open("cold", kColdBlocks, &cold_hashes_);
    hot_ = Open("hot", kHotBlocks, &hot_hashes_);
    ASSERT_TRUE(Eventually(absl::Seconds(20), [&] {
      return Nvme().pages() >= kColdBlocks + kHotBlocks;
    })) << "not written behind";
    (void)daemon_.Evict("cold", v1::TIER_DRAM);
  }
  Namespace Open(const std::string& name, size_t blocks, std::vector<BlockHash>* hashes) {
    NamespaceSpec spec = SmallSpec();
    spec.model = name;
    const absl::StatusOr<Namespace> ns = client_->Open(name, spec);
    EXPECT_TRUE(ns.ok()) << ns.status();
    *hashes = ns->Hash(Tokens(ns->spec, blocks, 7));
    EXPECT_TRUE(client_->Put(*ns, *hashes, PagesBytes(ns->spec, *hashes)).ok());
    return *ns;
  }
  v1::TierStatus Nvme() const {
    const v1::StatusResponse status = daemon_.Status();
    for (const v1::TierStatus& tier : status.tiers()) {
      if (tier.tier() == v1::TIER_NVME) return tier;
    }
    return {};
  }
  // Acquires what DRAM holds and copies its first page.
  void AcquireHot() {
    const absl::Time deadline = absl::Now() + absl::Seconds(2);
    auto lease = client_->Acquire(hot_, hot_hashes_, HottestTier::kDram, deadline);
    ASSERT_TRUE(lease.ok()) << lease.status();
    ASSERT_EQ(lease->matched_blocks(), kHotBlocks);
    std::vector<std::byte> page(hot_.spec.shape.page_bytes());
    ASSERT_TRUE(lease->CopyPage(0, page.data(), deadline).ok());
    ASSERT_EQ(page, PageBytes(hot_.spec, hot_hashes_[0])) << "wrong bytes";
  }
  // Gets four of these blocks.
  void GetHot() {
    const std::span<const BlockHash> some(hot_hashes_.data(), 4);
    std::vector<std::byte> pages(4 * hot_.spec.shape.page_bytes());
    const auto got = client_->Get(hot_, some, pages, absl::Now() + absl::Seconds(2));
    ASSERT_TRUE(got.ok()) << got.status();
    ASSERT_EQ(got->delivered_blocks, 4u);
  }
  // Asks for what only the disk has until `*stop`.
  std::thread LoadCold(std::atomic<bool>* stop) {
    return std::thread([this, stop] {
      const std::unique_ptr<Client> client = daemon_.Connect();
      while (!stop->load()) {
        const absl::Time deadline = absl::Now() + absl::Seconds(3);
        auto lease = client->Acquire(cold_, cold_hashes_, HottestTier::kDram, deadline);
        if (lease.ok() && lease->matched_blocks() > 0)
          (void)lease->WaitReady(lease->matched_blocks() - 1, deadline);
        absl::SleepFor(absl::Milliseconds(5));
      }
    });
  }
  void WaitServing(absl::Duration within) {
    EXPECT_TRUE(Eventually(within, [&] { return Nvme().state() == "serving"; }))
        << Nvme().ShortDebugString();
  }

  std::unique_ptr<FaultFsMount> disk_;  // goes after the daemon that lies on it
  DaemonProcess daemon_;
  std::unique_ptr<Client> client_;
  Namespace cold_, hot_;
  std::vector<BlockHash> cold_hashes_, hot_hashes_;
};

TEST_F(BrokenDisk, WhatDramHoldsIsServedAsBeforeWhileTheDiskHangs) {
  PairedTimes acquires("acquire", 1.5), gets("get", 1.5);
  for (int round = 0; round < 5; ++round) {
    const absl::Duration acquire = P99(150, [&] { AcquireHot(); });
    const absl::Duration get = P99(150, [&] { GetHot(); });
    (void)daemon_.Evict("cold", v1::TIER_DRAM);
    ASSERT_TRUE(disk_->Set("only pages"));
    ASSERT_TRUE(disk_->Set("stall 120000"));
    std::atomic<bool> stop{false};
    std::thread loads = LoadCold(&stop);
    const absl::Time hung = absl::Now();
    // The first half before the tier is given up, if it is that quick.
    const absl::Duration acquire_hung = P99(150, [&] { AcquireHot(); });
    const absl::Duration get_hung = P99(150, [&] { GetHot(); });
    EXPECT_TRUE(Eventually(hung + absl::Seconds(4) - absl::Now(), [&] {
      return Nvme().state() == "failed";
    })) << Nvme().ShortDebugString();
    std::printf("given up after %.1f s at most\n", absl::ToDoubleSeconds(absl::Now() - hung));
    acquires.Add(acquire, acquire_hung);
    gets.Add(get, get_hung);
    ASSERT_TRUE(disk_->Set("clear"));
    stop = true;
    loads.join();
    WaitServing(absl::Seconds(10));
  }
  acquires.Judge(kAlwaysGood);
  gets.Judge(kAlwaysGood);
}

TEST_F(BrokenDisk, ReadsAreAsBeforeWhileTheDiskIsFullAndItComesBackWithinTenSeconds) {
  PairedTimes acquires("acquire", 2), loads("load from NVMe", 2);
  std::vector<std::byte> page(cold_.spec.shape.page_bytes());
  const auto load_cold = [&] {
    (void)daemon_.Evict("cold", v1::TIER_DRAM);
    const absl::Time deadline = absl::Now() + absl::Seconds(2);
    auto lease = client_->Acquire(cold_, cold_hashes_, HottestTier::kDram, deadline);
    ASSERT_TRUE(lease.ok() && lease->matched_blocks() == kColdBlocks) << lease.status();
    ASSERT_TRUE(lease->CopyPage(kColdBlocks - 1, page.data(), deadline).ok());
    ASSERT_EQ(page, PageBytes(cold_.spec, cold_hashes_[kColdBlocks - 1])) << "wrong bytes";
  };
  for (uint32_t round = 0; round < 3; ++round) {
    const absl::Duration acquire = P99(150, [&] { AcquireHot(); });
    const absl::Duration load = P99(50, load_cold);
    ASSERT_TRUE(disk_->Set("write_error 1 28"));  // ENOSPC
    std::vector<BlockHash> saved;
    Open("saved-" + std::to_string(round), 16, &saved);
    ASSERT_TRUE(Eventually(absl::Seconds(10), [&] { return Nvme().state() == "read-only"; }))
        << Nvme().ShortDebugString();
    acquires.Add(acquire, P99(150, [&] { AcquireHot(); }));
    loads.Add(load, P99(50, load_cold));
    ASSERT_TRUE(disk_->Set("clear"));
    const absl::Time freed = absl::Now();
    WaitServing(absl::Seconds(10));
    std::printf("resumed after %.1f s\n", absl::ToDoubleSeconds(absl::Now() - freed));
  }
  acquires.Judge(kAlwaysGood);
  loads.Judge(4 * kAlwaysGood);
}

TEST_F(BrokenDisk, SigtermDoesNotWaitForADiskThatHangs) {
  ASSERT_TRUE(disk_->Set("stall 120000"));
  std::atomic<bool> stop{false};
  std::thread loads = LoadCold(&stop);
  absl::SleepFor(absl::Milliseconds(300));
  daemon_.Signal(SIGTERM);
  const absl::Time start = absl::Now();
  EXPECT_TRUE(Eventually(absl::Seconds(14), [&] {
    return daemon_.Log().find("ended without waiting for a device") != std::string::npos;
  })) << "it waits";
  std::printf("gave up after %.1f s\n", absl::ToDoubleSeconds(absl::Now() - start));
  stop = true;
  loads.join();
  // A request that the file system has not answered holds the process in the kernel.
  ASSERT_TRUE(disk_->Set("clear"));
  EXPECT_EQ(daemon_.WaitExit(absl::Seconds(5)), 1);
}

}  // namespace
}  // namespace kvstore::testing
