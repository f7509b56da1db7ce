// A real daemon with its GPU tier on cuda:0, and clients that map it. Skipped, visibly, where there
// is no CUDA device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "kvstore/client/cuda_slabs.h"
#include "tests/integration/daemon_process.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::HottestTier;
using client::Lease;
using client::Namespace;
using client::Reservation;
using ::testing::HasSubstr;

class CudaDaemon : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::shared_ptr<client::DeviceSlabs>> slabs = client::OpenCudaSlabs(0);
    if (!slabs.ok()) GTEST_SKIP() << slabs.status();
    slabs_ = *slabs;
    daemon_.Start({.sets = {"tier.gpu.device=cuda:0", "tier.gpu.bytes=64MiB"}});
    client_ = Connect();
    absl::StatusOr<Namespace> ns = client_->Open("small", SmallSpec());
    ASSERT_TRUE(ns.ok()) << ns.status();
    ns_ = *ns;
  }
  std::unique_ptr<Client> Connect() {
    auto connected = daemon_.Connect({.device_slabs = slabs_});
    EXPECT_TRUE(connected->WaitConnected(absl::Now() + absl::Seconds(10)).ok());
    return connected;
  }
  static absl::Time Soon() { return absl::Now() + absl::Seconds(10); }
  // Saves the blocks in the GPU tier.
  absl::Status Save(Client& to, const std::vector<BlockHash>& hashes) {
    client::ReserveRequest request = {.hashes = hashes, .tier = client::Tier::kGpu};
    absl::StatusOr<Reservation> reserved = to.Reserve(ns_, request, Soon());
    if (!reserved.ok()) return reserved.status();
    for (size_t i = 0; i < hashes.size(); ++i) {
      EXPECT_EQ(reserved->slot(i), nullptr) << "device memory has no host address";
      EXPECT_NE(reserved->device_slot(i), 0u);
      const std::vector<std::byte> page = PageBytes(ns_.spec, hashes[i]);
      reserved->Fill(i, page.data());
    }
    return reserved->CommitAll(Soon());
  }
  void ExpectPages(Client& from, const std::vector<BlockHash>& hashes, HottestTier hottest,
                   client::Tier expected) {
    absl::StatusOr<Lease> lease = from.Acquire(ns_, hashes, hottest, Soon());
    ASSERT_TRUE(lease.ok()) << lease.status();
    ASSERT_EQ(lease->matched_blocks(), hashes.size());
    std::vector<std::byte> page(ns_.spec.shape.page_bytes());
    for (uint32_t i = 0; i < hashes.size(); ++i) {
      const absl::Status copied = lease->CopyPage(i, page.data(), Soon());
      ASSERT_TRUE(copied.ok()) << copied;
      ASSERT_EQ(page, PageBytes(ns_.spec, hashes[i])) << "wrong bytes";
      ASSERT_TRUE(lease->VerifyPage(i, Soon()).ok());
      EXPECT_EQ(lease->ReadyTier(i), expected);
    }
  }

  std::shared_ptr<client::DeviceSlabs> slabs_;
  DaemonProcess daemon_;
  std::unique_ptr<Client> client_;
  Namespace ns_;
};

TEST_F(CudaDaemon, PagesOnTheDeviceOutliveTheirWriterAndAreSharedByClients) {
  const std::vector<BlockHash> hashes = ns_.Hash(Tokens(ns_.spec, 100, 1));
  ASSERT_TRUE(Save(*client_, hashes).ok());
  client_ = Connect();  // the one that wrote them is gone
  ExpectPages(*client_, hashes, HottestTier::kGpu, client::Tier::kGpu);
  const std::unique_ptr<Client> other = Connect();
  ExpectPages(*other, hashes, HottestTier::kGpu, client::Tier::kGpu);
}

TEST_F(CudaDaemon, PagesOnTheDeviceAreReadFromDramByClientsThatDoNotMapIt) {
  const std::vector<BlockHash> hashes = ns_.Hash(Tokens(ns_.spec, 50, 2));
  ASSERT_TRUE(Save(*client_, hashes).ok());
  const std::unique_ptr<Client> plain = daemon_.Connect();
  ExpectPages(*plain, hashes, HottestTier::kDram, client::Tier::kDram);
}

TEST_F(CudaDaemon, ADaemonThatIsKilledAndComesBackHasAnEmptyDeviceAndNoWrongBytes) {
  const std::vector<BlockHash> hashes = ns_.Hash(Tokens(ns_.spec, 20, 3));
  ASSERT_TRUE(Save(*client_, hashes).ok());
  daemon_.KillHard();
  daemon_.Start({.sets = {"tier.gpu.device=cuda:0", "tier.gpu.bytes=64MiB"}});
  client_ = Connect();
  ASSERT_TRUE(client_->Open("small", SmallSpec()).ok());
  absl::StatusOr<client::Match> match = client_->MatchPrefix(ns_, hashes);
  ASSERT_TRUE(match.ok()) << match.status();
  EXPECT_EQ(match->matched_blocks, 0u);
  ASSERT_TRUE(Save(*client_, hashes).ok());
  ExpectPages(*client_, hashes, HottestTier::kGpu, client::Tier::kGpu);
}

TEST_F(CudaDaemon, DevicesThatAreNotThereAndPoolsThatDoNotFitAreRefusedWithTheReason) {
  DaemonProcess other;
  EXPECT_NE(other.RunToExit({"--set", "tier.gpu.device=cuda:99", "--set", "tier.gpu.bytes=64MiB"}),
            0);
  EXPECT_THAT(other.Log(), HasSubstr("there is no CUDA device 99"));
  DaemonProcess large;
  EXPECT_NE(large.RunToExit({"--set", "tier.gpu.device=cuda:0", "--set", "tier.gpu.bytes=10TiB"}),
            0);
  EXPECT_THAT(large.Log(), HasSubstr("MiB free of"));
}

}  // namespace
}  // namespace kvstore::testing
