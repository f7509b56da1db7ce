// What comes back from two tiers that outlive the process: memory that is kept, and NVMe.
#include <algorithm>

#include "kvstore/store/namespace_table.h"
#include "tests/store/store_fixture.h"

namespace kvstore::tests {
namespace {

// A store that finds namespaces and blocks in tiers that an earlier run is said to have left.
class StoreRecovery : public ::testing::Test {
 protected:
  StoreRecovery() {
    StoreFixture::Options options;
    options.has_gpu = false;
    options.dram.is_kept = true;
    f_ = std::make_unique<StoreFixture>(options);
    spec_ = TestSpec("m");
    fingerprint_ = spec_.ComputeFingerprint();
    hashes_ = Chain(fingerprint_, 1, 4);
  }
  void HasNamespace(FaultyTier& tier, uint64_t epoch) {
    tier.AddRecoveredMetadata("ns/" + fingerprint_.Hex(), Record(epoch));
  }
  std::string Record(uint64_t epoch) {
    store::Namespace ns{.name = "m", .fingerprint = fingerprint_, .spec = spec_, .epoch = epoch};
    return store::NamespaceTable::EncodeRecord(ns);
  }
  void HasBlocks(FaultyTier& tier, uint64_t epoch, size_t first, size_t end) {
    for (size_t i = first; i < end; ++i) {
      PageIdentity identity{.shape = spec_.shape, .fingerprint = fingerprint_, .epoch = epoch};
      identity.hash = hashes_[i];
      if (i > 0) identity.parent = hashes_[i - 1];
      identity.block_index = static_cast<uint32_t>(i);
      identity.page_checksum = ContentOf(hashes_[i]);
      tier.AddRecovered(PoolId(0), identity);  // the only pool that there will be
    }
  }
  void Start() {
    f_->core->Start([this](absl::Status status) { finished_ = status; });
    f_->Settle(absl::Seconds(1));
    EXPECT_EQ(finished_, absl::OkStatus());
    EXPECT_EQ(f_->core->CheckInvariants(), absl::OkStatus());
  }
  store::MatchResult Match() { return f_->core->Match(f_->Open(spec_, "m").id, hashes_); }

  std::unique_ptr<StoreFixture> f_;
  NamespaceSpec spec_;
  Fingerprint fingerprint_;
  std::vector<BlockHash> hashes_;
  absl::Status finished_ = absl::UnknownError("recovery has not ended");
};

TEST_F(StoreRecovery, BlocksOfBothTiersComeBackInBoth) {
  HasNamespace(f_->dram, 3);
  HasNamespace(f_->nvme, 3);
  HasBlocks(f_->dram, 3, 0, 2);
  HasBlocks(f_->nvme, 3, 0, 4);
  Start();
  const store::MatchResult match = Match();
  EXPECT_EQ(match.matched_blocks, 4u);
  EXPECT_EQ(match.by_tier[1], 2u);
  EXPECT_EQ(match.by_tier[2], 2u);
  EXPECT_EQ(f_->core->status().tiers[1].counters.recovered_pages, 4u);
  EXPECT_EQ(f_->dram.noted().size(), 2u);
}

TEST_F(StoreRecovery, AClearThatOnlyMemoryKnowsHoldsForNvmeToo) {
  HasNamespace(f_->dram, 4);
  HasNamespace(f_->nvme, 3);
  HasBlocks(f_->dram, 3, 0, 2);
  HasBlocks(f_->nvme, 3, 0, 4);
  Start();
  EXPECT_EQ(Match().matched_blocks, 0u) << "cleared blocks came back";
  EXPECT_EQ(f_->nvme.recovered_and_refused(), 4u);
  EXPECT_EQ(f_->nvme.saved_metadata().begin()->second, Record(4)) << "NVMe was not told";
}

TEST_F(StoreRecovery, AClearThatOnlyNvmeKnowsHoldsForMemoryToo) {
  HasNamespace(f_->dram, 3);
  HasNamespace(f_->nvme, 4);
  HasBlocks(f_->dram, 3, 0, 4);
  Start();
  EXPECT_EQ(Match().matched_blocks, 0u) << "cleared blocks came back";
  EXPECT_EQ(f_->dram.saved_metadata().begin()->second, Record(4));
}

TEST_F(StoreRecovery, AClearDuringRecoveryHolds) {
  HasNamespace(f_->dram, 3);
  HasBlocks(f_->dram, 3, 0, 4);
  f_->core->Start([this](absl::Status status) { finished_ = status; });
  absl::Status cleared = absl::UnknownError("not called");
  f_->core->Clear("default", fingerprint_, [&](absl::Status status) { cleared = status; });
  f_->Settle(absl::Seconds(1));
  EXPECT_EQ(finished_, absl::OkStatus());
  EXPECT_EQ(cleared, absl::OkStatus());
  EXPECT_EQ(Match().matched_blocks, 0u) << "cleared blocks came back";
  EXPECT_EQ(f_->dram.saved_metadata().begin()->second, Record(4));
}

TEST_F(StoreRecovery, ANewNvmeTierIsToldOfNamespacesAndGetsTheBlocks) {
  HasNamespace(f_->dram, 3);
  HasBlocks(f_->dram, 3, 0, 4);
  Start();
  f_->Settle();
  EXPECT_EQ(f_->nvme.saved_metadata().begin()->second, Record(3));
  EXPECT_EQ(f_->nvme.stats().used_pages, 4u) << "write-through for what had not been written";
}

TEST_F(StoreRecovery, AQuotaThatMemoryKnowsOverrulesAnOlderOne) {
  const auto record = [](uint64_t bytes) {
    StoreFixture::Options options;
    options.has_gpu = false;
    StoreFixture other(options);
    other.core->Start([](absl::Status) {});
    other.core->SetQuota("t", TierKind::kDram, bytes, store::QuotaLife::kDurable,
                         [](absl::Status) {});
    other.Settle();
    return other.nvme.saved_metadata().begin()->second;
  };
  f_->dram.AddRecoveredMetadata("quota/t", record(4096 * 8));
  f_->nvme.AddRecoveredMetadata("quota/t", record(4096 * 4));
  Start();
  const std::vector<store::TenantRow> tenants = f_->core->ListTenants();
  const auto tenant = std::ranges::find(tenants, "t", &store::TenantRow::name);
  ASSERT_NE(tenant, tenants.end());
  EXPECT_EQ(tenant->tiers[0].quota_bytes, 4096u * 8);
}

}  // namespace
}  // namespace kvstore::tests
