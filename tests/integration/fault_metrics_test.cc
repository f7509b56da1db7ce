// What monitoring is told while a disk misbehaves: each number of rule "counters prove it" moves
// when its fault is made, on the page of a real daemon.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "kvstore/base/unique_fd.h"
#include "tests/integration/daemon_process.h"
#include "tests/support/fault_fs/fault_fs_mount.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::HottestTier;
using client::Namespace;

constexpr size_t kBlocks = 16;
constexpr absl::Duration kLong = absl::Seconds(20);

class FaultMetrics : public ::testing::Test {
 protected:
  void SetUp() override {
    disk_ = FaultFsMount::Create();
    if (disk_ == nullptr) GTEST_SKIP() << FaultFsMount::kMissing;
    ASSERT_EQ(mkdir((disk_->path() + "/nvme").c_str(), 0700), 0);
    daemon_.Start({.sets = {"tier.nvme.dirs=" + disk_->path() + "/nvme", "tier.nvme.bytes=256MiB",
                            "tier.dram.bytes=64MiB", "server.http=127.0.0.1:0",
                            "limits.move_deadline=500ms"}});
    client_ = daemon_.Connect();
    ns_ = *client_->Open("m", SmallSpec());
    hashes_ = ns_.Hash(Tokens(ns_.spec, kBlocks, 7));
    ASSERT_TRUE(client_->Put(ns_, hashes_, PagesBytes(ns_.spec, hashes_)).ok());
    // What is not on the disk yet cannot be evicted.
    uint64_t evicted = 0;
    ASSERT_TRUE(Eventually(kLong, [&] {
      return (evicted += daemon_.Evict("m", v1::TIER_DRAM).blocks()) == kBlocks;
    })) << evicted;
    ASSERT_TRUE(disk_->Set("only pages"));
  }
  std::string Page() const {
    const std::string log = daemon_.Log();
    constexpr std::string_view kAt = "http=127.0.0.1:";
    const size_t at = log.rfind(kAt);
    if (at == std::string::npos) return {};
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(std::stoul(log.substr(at + kAt.size(), 5))));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return {};
    const std::string ask = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    if (write(fd.get(), ask.data(), ask.size()) != static_cast<ssize_t>(ask.size())) return {};
    std::string page;
    char piece[4096];
    for (ssize_t got = 0; (got = read(fd.get(), piece, sizeof piece)) > 0;)
      page.append(piece, static_cast<size_t>(got));
    return page;
  }
  // Of the sample with exactly that name and labels; 0 if there is none.
  double Value(const std::string& sample) const {
    const std::string page = Page(), line = "\n" + sample + " ";
    const size_t at = page.find(line);
    return at == std::string::npos ? 0 : std::stod(page.substr(at + line.size(), 32));
  }
  bool Reaches(const std::string& sample, double value) const {
    return Eventually(kLong, [&] { return Value(sample) >= value; });
  }
  absl::StatusOr<client::Lease> Acquire() {
    return client_->Acquire(ns_, hashes_, HottestTier::kDram, absl::Now() + absl::Seconds(5));
  }
  // Asks for what only the disk has until it is there or lost.
  void Load() {
    auto lease = Acquire();
    for (uint32_t i = 0; lease.ok() && i < kBlocks; ++i)
      (void)lease->WaitReady(i, absl::Now() + absl::Seconds(5));
  }

  std::unique_ptr<FaultFsMount> disk_;  // goes after the daemon that lies on it
  DaemonProcess daemon_;
  std::unique_ptr<Client> client_;
  Namespace ns_;
  std::vector<BlockHash> hashes_;
};

TEST_F(FaultMetrics, ADiskThatHangsOpensTheBreakerAndMissesDeadlines) {
  constexpr char kState[] = "kvstore_tiers_breaker_state{tier=\"nvme\",state=\"";
  EXPECT_EQ(Value(absl::StrCat(kState, "closed\"}")), 1);
  EXPECT_EQ(Value("kvstore_tiers_breaker_openings_total{tier=\"nvme\"}"), 0);
  EXPECT_EQ(Value("kvstore_store_deadline_miss_total{tier=\"nvme\"}"), 0);
  ASSERT_TRUE(disk_->Set("stall 120000"));
  Load();
  EXPECT_TRUE(Reaches("kvstore_tiers_breaker_openings_total{tier=\"nvme\"}", 1));
  EXPECT_EQ(Value(absl::StrCat(kState, "closed\"}")), 0);
  EXPECT_EQ(Value("kvstore_tiers_state{tier=\"nvme\",state=\"failed\"}"), 1);
  ASSERT_TRUE(disk_->Set("clear"));
  EXPECT_TRUE(Reaches(absl::StrCat(kState, "closed\"}"), 1));
  EXPECT_TRUE(Reaches("kvstore_store_deadline_miss_total{tier=\"nvme\"}", 1));
  EXPECT_EQ(Value("kvstore_tiers_state{tier=\"nvme\",state=\"serving\"}"), 1);
  EXPECT_EQ(Value("kvstore_store_lost_pages_total{tier=\"nvme\"}"), 0) << "the disk is as before";
}

TEST_F(FaultMetrics, FlippedBitsAreCountedAndTheirSlotsQuarantined) {
  EXPECT_EQ(Value("kvstore_tiers_quarantine_pages{tier=\"nvme\"}"), 0);
  ASSERT_TRUE(disk_->Set("read_flip 1"));
  Load();
  ASSERT_TRUE(disk_->Set("clear"));
  EXPECT_TRUE(Reaches("kvstore_store_verify_fail_total{tier=\"nvme\",reason=\"differs\"}", 1));
  EXPECT_TRUE(Reaches("kvstore_tiers_quarantine_pages{tier=\"nvme\"}", 1));
  EXPECT_TRUE(Reaches("kvstore_store_lost_pages_total{tier=\"nvme\"}", 1));
}

TEST_F(FaultMetrics, AFullDiskIsReadOnlyUntilItHasRoom) {
  ASSERT_TRUE(disk_->Set("write_error 1 28"));  // ENOSPC
  const auto more = ns_.Hash(Tokens(ns_.spec, kBlocks, 8));
  ASSERT_TRUE(client_->Put(ns_, more, PagesBytes(ns_.spec, more)).ok());
  EXPECT_TRUE(Reaches("kvstore_tiers_state{tier=\"nvme\",state=\"read-only\"}", 1));
  ASSERT_TRUE(disk_->Set("clear"));
  EXPECT_TRUE(Reaches("kvstore_tiers_state{tier=\"nvme\",state=\"serving\"}", 1));
}

TEST_F(FaultMetrics, PinsAreWhatLeasesHold) {
  constexpr char kPins[] = "kvstore_store_tenant_pins{tenant=\"default\"}";
  EXPECT_EQ(Value(kPins), 0);
  auto lease = Acquire();
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_TRUE(Reaches(kPins, kBlocks));
  EXPECT_EQ(Value("kvstore_store_leases"), 1);
  lease->Release();
  EXPECT_TRUE(
      Eventually(kLong, [&] { return Value(kPins) == 0 && Value("kvstore_store_leases") == 0; }));
}

}  // namespace
}  // namespace kvstore::testing
