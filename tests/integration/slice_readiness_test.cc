// Large pages on their way up from a disk that is let go step by step: an engine reads the first
// slices of all blocks while the later ones are still on the disk.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/integration/daemon_process.h"
#include "tests/support/fault_fs/fault_fs_mount.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::HottestTier;
using client::Lease;
using client::Namespace;
using client::Readiness;

constexpr uint32_t kBlocks = 4;
constexpr uint32_t kSlices = 8;
constexpr uint32_t kSliceBytes = 1 << 20;
constexpr absl::Duration kShort = absl::Milliseconds(50);
constexpr absl::Duration kLong = absl::Seconds(20);

class SliceReadiness : public ::testing::Test {
 protected:
  void SetUp() override {
    disk_ = FaultFsMount::Create();
    if (disk_ == nullptr) GTEST_SKIP() << FaultFsMount::kMissing;
    ASSERT_EQ(mkdir((disk_->path() + "/nvme").c_str(), 0700), 0);
    daemon_.Start({.sets = {"tier.nvme.dirs=" + disk_->path() + "/nvme", "tier.nvme.bytes=512MiB",
                            "tier.dram.bytes=128MiB", "limits.move_deadline=60s"}});
    client_ = daemon_.Connect();
    NamespaceSpec spec = SmallSpec();
    spec.model = "large pages";
    spec.shape = {.num_slices = kSlices, .slice_bytes = kSliceBytes};
    const absl::StatusOr<Namespace> ns = client_->Open("large", spec);
    ASSERT_TRUE(ns.ok()) << ns.status();
    ns_ = *ns;
    hashes_ = ns_.Hash(Tokens(ns_.spec, kBlocks, 7));
    ASSERT_TRUE(client_->Put(ns_, hashes_, PagesBytes(ns_.spec, hashes_)).ok());
    // What is not on the disk yet cannot be evicted.
    uint64_t evicted = 0;
    ASSERT_TRUE(Eventually(kLong, [&] {
      return (evicted += daemon_.Evict("large", v1::TIER_DRAM).blocks()) == kBlocks;
    })) << evicted;
    ASSERT_TRUE(disk_->Set("only pages"));
  }
  // What the disk has in hand it gives; what is asked for from then on it keeps.
  void Step() { ASSERT_TRUE(disk_->Set("stall 120000")); }
  Lease Acquire(Readiness readiness) {
    auto lease = client_->Acquire(ns_, hashes_, {HottestTier::kDram, readiness},
                                  absl::Now() + absl::Seconds(5));
    EXPECT_TRUE(lease.ok()) << lease.status();
    EXPECT_EQ(lease->matched_blocks(), kBlocks);
    return *std::move(lease);
  }
  // Lets the disk go on until the first slice of every block is there, and no further.
  void StepToFirstSlices(Lease& lease) {
    const auto are_there = [&] {
      for (uint32_t block = 0; block < kBlocks; ++block) {
        if (!lease.WaitSlice(block, 0, absl::Now() + kShort).ok()) return false;
      }
      return true;
    };
    for (int step = 0; step < 100 && !are_there(); ++step) Step();
  }
  void ExpectSlice(Lease& lease, uint32_t block, uint32_t slice) {
    std::vector<std::byte> bytes(kSliceBytes);
    const absl::Status copied =
        lease.CopySlice(block, slice, bytes.data(), absl::Now() + absl::Seconds(10));
    ASSERT_TRUE(copied.ok()) << copied;
    const std::vector<std::byte> page = PageBytes(ns_.spec, hashes_[block]);
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), page.begin() + slice * kSliceBytes))
        << "wrong bytes in slice " << slice;
  }

  std::unique_ptr<FaultFsMount> disk_;  // goes after the daemon that lies on it
  DaemonProcess daemon_;
  std::unique_ptr<Client> client_;
  Namespace ns_;
  std::vector<BlockHash> hashes_;
};

TEST_F(SliceReadiness, FirstSlicesAreReadWhileLaterOnesAreOnTheDisk) {
  Step();
  Lease lease = Acquire(Readiness::kBySlice);
  StepToFirstSlices(lease);
  for (uint32_t block = 0; block < kBlocks; ++block) {
    ExpectSlice(lease, block, 0);
    EXPECT_EQ(lease.ReadyTier(block), std::nullopt) << "not the whole page";
    EXPECT_TRUE(absl::IsDeadlineExceeded(lease.WaitReady(block, absl::Now() + kShort).status()));
    EXPECT_TRUE(
        absl::IsDeadlineExceeded(lease.WaitSlice(block, kSlices - 1, absl::Now() + kShort)));
  }
  ASSERT_TRUE(disk_->Set("clear"));
  for (uint32_t slice = 0; slice < kSlices; ++slice) {
    for (uint32_t block = 0; block < kBlocks; ++block) ExpectSlice(lease, block, slice);
  }
  for (uint32_t block = 0; block < kBlocks; ++block)
    EXPECT_TRUE(lease.VerifyPage(block, absl::Now() + kLong).ok());
}

TEST_F(SliceReadiness, ASliceThatIsBadShortensThePrefix) {
  Step();
  Lease lease = Acquire(Readiness::kBySlice);
  StepToFirstSlices(lease);
  ExpectSlice(lease, 0, 0);
  ASSERT_TRUE(disk_->Set("read_flip 1"));
  ASSERT_TRUE(disk_->Set("stall 0"));
  std::vector<std::byte> bytes(kSliceBytes);
  EXPECT_FALSE(lease.CopySlice(0, kSlices - 1, bytes.data(), absl::Now() + kLong).ok());
  EXPECT_TRUE(Eventually(kLong, [&] { return lease.matched_blocks() == 0; }));
  EXPECT_FALSE(lease.CopySlice(0, 0, bytes.data(), absl::Now() + kLong).ok()) << "it is lost";
  ASSERT_TRUE(disk_->Set("clear"));
}

TEST_F(SliceReadiness, WhoAsksByBlockHearsOfWholePages) {
  Step();
  Lease lease = Acquire(Readiness::kByBlock);
  for (int step = 0; step < 4; ++step) {
    EXPECT_FALSE(lease.WaitSlice(0, 0, absl::Now() + kShort).ok() && !lease.ReadyTier(0));
    Step();
  }
  ASSERT_TRUE(disk_->Set("clear"));
  for (uint32_t block = 0; block < kBlocks; ++block) ExpectSlice(lease, block, 0);
}

TEST_F(SliceReadiness, ALeaseThatEndsInTheMiddleLeavesNothing) {
  Step();
  {
    Lease lease = Acquire(Readiness::kBySlice);
    StepToFirstSlices(lease);
  }
  EXPECT_TRUE(Eventually(kLong, [&] { return daemon_.Status().leases() == 0; }));
  ASSERT_TRUE(disk_->Set("clear"));
  Lease again = Acquire(Readiness::kBySlice);
  for (uint32_t block = 0; block < kBlocks; ++block) ExpectSlice(again, block, kSlices - 1);
}

TEST_F(SliceReadiness, ADaemonThatDiesInTheMiddleIsAnErrorAndNeverWrongBytes) {
  Step();
  Lease lease = Acquire(Readiness::kBySlice);
  StepToFirstSlices(lease);
  daemon_.KillHard();
  ASSERT_TRUE(disk_->Set("clear"));
  std::vector<std::byte> bytes(kSliceBytes);
  EXPECT_FALSE(lease.CopySlice(0, kSlices - 1, bytes.data(), absl::Now() + kLong).ok());
  if (lease.CopySlice(0, 0, bytes.data(), absl::Now() + kShort).ok()) {
    const std::vector<std::byte> page = PageBytes(ns_.spec, hashes_[0]);
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), page.begin()));
  }
}

}  // namespace
}  // namespace kvstore::testing
