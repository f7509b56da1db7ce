// Tenants beside each other in one store: quotas, accounts, and service in turn; shares_test.cc has
// the shares. On virtual time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "tests/store/store_tenants_test.h"

namespace kvstore::tests {
namespace {

using store::QuotaLife;
using store::TenantRow;
using testing::HasSubstr;

// --- Quotas

TEST_F(TenantsTest, ATenantAtItsQuotaEvictsItsOwnOldestLeavesAndNobodyElses) {
  Make(DramOnly(8));
  const User a = Join("a"), b = Join("b");
  ASSERT_TRUE(SetQuota("a", 40).ok());
  Put(b, 0);
  for (uint32_t branch = 0; branch < 5; ++branch) EXPECT_EQ(Put(a, branch), 16u);
  EXPECT_EQ(In("a").used_bytes, 40 * kSlotBytes);
  EXPECT_EQ(Matched(a, 4), 16u);
  EXPECT_EQ(Matched(a, 3), 16u);
  EXPECT_EQ(Matched(a, 2), 8u) << "its tail went, not its head";
  EXPECT_EQ(Matched(b, 0), 16u) << "the oldest of all";
}

TEST_F(TenantsTest, AQuotaBelowWhatIsUsedIsReachedInTheBackgroundLeavesFirst) {
  Make(DramOnly(64));
  const User a = Join("a"), b = Join("b");
  for (uint32_t branch = 0; branch < 40; ++branch) Put(a, branch, 64);
  Put(b, 0);
  ASSERT_EQ(In("a").used_bytes, 2560 * kSlotBytes);
  f->core->SetQuota("a", TierKind::kDram, 1000 * kSlotBytes, QuotaLife::kThisRun,
                    [](absl::Status s) { EXPECT_TRUE(s.ok()) << s; });
  EXPECT_GT(In("a").used_bytes, 2000 * kSlotBytes) << "not in the call: the core has other work";
  f->Settle();
  EXPECT_EQ(In("a").used_bytes, 1000 * kSlotBytes);
  for (uint32_t branch = 25; branch < 40; ++branch) EXPECT_EQ(Matched(a, branch, 64), 64u);
  EXPECT_EQ(Matched(b, 0), 16u);
}

TEST_F(TenantsTest, ShrinkingWaitsForLeasesAndForWritesInProgress) {
  Make(DramOnly(8));
  const User a = Join("a");
  Put(a, 0);
  Put(a, 1);
  const auto lease = Acquire(a, 0);
  const auto reserved =
      f->core->Reserve(a.session, a.opened.id, std::nullopt, 0, Prompt(a, 2), TierKind::kDram);
  ASSERT_TRUE(reserved.ok());
  ASSERT_TRUE(SetQuota("a", 8).ok());
  f->Settle(absl::Seconds(1));
  EXPECT_EQ(In("a").used_bytes, 32 * kSlotBytes) << "leased and reserved ones stay";
  for (const auto& ready : lease->ready)
    EXPECT_TRUE(HasContent(ready.location.address, Prompt(a, 0)[ready.block]));
  EXPECT_EQ(Put(a, 3), 0u) << "over its quota, it saves nothing";
  ASSERT_TRUE(f->core->Release(a.session, lease->lease, {}).ok());
  ASSERT_TRUE(f->core->Abort(a.session, reserved->reservation).ok());
  f->Settle(absl::Seconds(1));
  EXPECT_EQ(In("a").used_bytes, 8 * kSlotBytes);
}

TEST_F(TenantsTest, AQuotaOfTheDramTierLeavesTheCopiesOnNvme) {
  StoreFixture::Options o;
  o.has_gpu = false;
  o.dram.num_slabs = 8;
  Make(o);
  const User a = Join("a");
  for (uint32_t branch = 0; branch < 8; ++branch) Put(a, branch);
  f->Settle();
  ASSERT_TRUE(SetQuota("a", 16).ok());
  f->Settle();
  EXPECT_EQ(In("a").used_bytes, 16 * kSlotBytes);
  EXPECT_EQ(In("a", TierKind::kNvme).used_bytes, 128 * kSlotBytes);
  EXPECT_EQ(MatchedOf(a, 0, 8), 128u);
  const auto lease = Acquire(a, 0);
  f->Settle();
  EXPECT_EQ(lease->ready.size(), 16u) << "and they come up, under the quota";
}

TEST_F(TenantsTest, AQuotaUnderOneSlotStoresNothingAndRemovingItEndsThat) {
  Make(DramOnly(4));
  const User a = Join("a");
  Put(a, 0);
  f->core->SetQuota("a", TierKind::kDram, 1, QuotaLife::kThisRun, [](absl::Status) {});
  f->Settle();
  EXPECT_EQ(In("a").used_bytes, 0u);
  EXPECT_EQ(Put(a, 1), 0u);
  ASSERT_TRUE(SetQuota("a", 0).ok());
  EXPECT_EQ(Put(a, 1), 16u);
}

TEST_F(TenantsTest, QuotasOfATierThatIsNotThereAreRefused) {
  Make(DramOnly(4));
  const absl::Status status = SetQuota("a", 4, TierKind::kGpu);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("no gpu tier"));
}

TEST_F(TenantsTest, QuotasSurviveARestartUnlessTheConfigurationSaysOtherwise) {
  StoreFixture::Options o;
  o.has_gpu = false;
  Make(o);
  ASSERT_TRUE(SetQuota("kept", 10).ok());
  ASSERT_TRUE(SetQuota("kept", 20, TierKind::kNvme).ok());
  ASSERT_TRUE(SetQuota("overruled", 10).ok());
  const auto metadata = f->nvme.saved_metadata();
  Make(o);
  for (const auto& [key, value] : metadata) f->nvme.AddRecoveredMetadata(key, value);
  f->nvme.AddRecoveredMetadata("quota/damaged", "kvqr1123");
  f->core->SetQuota("overruled", TierKind::kDram, 99, QuotaLife::kThisRun, [](absl::Status) {});
  f->core->Start([](absl::Status s) { EXPECT_TRUE(s.ok()) << s; });
  f->Settle();
  EXPECT_EQ(In("kept").quota_bytes, 10 * kSlotBytes);
  EXPECT_EQ(In("kept", TierKind::kNvme).quota_bytes, 20 * kSlotBytes);
  EXPECT_EQ(In("overruled").quota_bytes, 99u);
  EXPECT_EQ(f->nvme.saved_metadata().at("quota/overruled"), metadata.at("quota/overruled"))
      << "configuration is not written to disk";
}

TEST_F(TenantsTest, AQuotaHoldsForWhatRecoveryFinds) {
  StoreFixture::Options o;
  o.has_gpu = false;
  Make(o);
  const User a = Join("a");
  ASSERT_TRUE(SetQuota("a", 10, TierKind::kNvme).ok());
  const auto metadata = f->nvme.saved_metadata();
  const auto hashes = Prompt(a, 0, 40);
  Make(o);
  for (const auto& [key, value] : metadata) f->nvme.AddRecoveredMetadata(key, value);
  ASSERT_TRUE(f->nvme.OpenPool(PoolId(0), {.tenant = "a", .slot_bytes = kSlotBytes}).ok());
  for (uint32_t i = 0; i < hashes.size(); ++i) {
    PageIdentity identity{.shape = a.opened.spec.shape,
                          .fingerprint = a.opened.fingerprint,
                          .epoch = 1,
                          .hash = hashes[i]};
    if (i > 0) identity.parent = hashes[i - 1];
    identity.block_index = i;
    identity.page_checksum = ContentOf(hashes[i]);
    f->nvme.AddRecovered(PoolId(0), identity);
  }
  f->core->Start([](absl::Status s) { EXPECT_TRUE(s.ok()) << s; });
  f->Settle();
  EXPECT_EQ(In("a", TierKind::kNvme).used_bytes, 10 * kSlotBytes);
  const auto found = f->core->FindNamespace("a", a.opened.fingerprint);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(f->core->Match(found->id, hashes).matched_blocks, 10u) << "the head of the prompt";
}

// --- Service in turn, and bounds

TEST_F(TenantsTest, AFloodOfLoadsDoesNotDelayAnothersLoad) {
  StoreFixture::Options o;
  o.has_gpu = false;
  o.dram.num_slabs = o.nvme.num_slabs = 200;
  Make(o);
  const User a = Join("a"), b = Join("b");
  Put(a, 0, 4000);
  Put(b, 0, 8);
  f->Settle(absl::Minutes(1));
  f->core->Evict(a.opened.id, TierKind::kDram);
  f->core->Evict(b.opened.id, TierKind::kDram);
  const auto flood = Acquire(a, 0, 4000);
  f->executor.RunUntilIdle();
  const auto load = Acquire(b, 0, 8);
  const absl::Time start = f->clock.Now();
  while (!load->is_last && f->executor.NextTimer() < start + absl::Seconds(10)) {
    f->clock.Advance(f->executor.NextTimer() - f->clock.Now());
    f->executor.RunUntilIdle();
  }
  // Of 16 places 8 are its: one round of at most 20 ms, after one that gives way.
  EXPECT_LE(f->clock.Now() - start, absl::Milliseconds(60));
  EXPECT_EQ(load->ready.size(), 8u);
  EXPECT_FALSE(flood->is_last);
  f->Settle(absl::Minutes(1));
  EXPECT_EQ(flood->matched_blocks, 4000u);
}

TEST_F(TenantsTest, WhoWaitsInQueuesIsCountedAndBounded) {
  StoreFixture::Options o;
  o.has_gpu = false;
  o.dram.num_slabs = o.nvme.num_slabs = 200;
  Make(o);
  const User a = Join("a"), b = Join("b");
  Put(a, 0, 5000);
  EXPECT_EQ(Row("a").moves, 4096u) << "write-behinds of one tenant";
  Put(b, 0, 100);
  EXPECT_EQ(Row("b").moves, 100u) << "another one has room";
  f->Settle(absl::Minutes(1));
  EXPECT_EQ(Row("a").moves, 0u);
}

TEST_F(TenantsTest, LeasedAndReservedBlocksOfATenantAreBounded) {
  StoreFixture::Options o = DramOnly(8);
  o.store.leased_blocks_per_tenant_max = 40;
  o.store.reserved_blocks_per_tenant_max = 20;
  Make(o);
  const User a = Join("a"), b = Join("b");
  Put(a, 0);
  Put(b, 0);
  const auto first = Acquire(a, 0), second = Acquire(a, 0), third = Acquire(a, 0);
  EXPECT_TRUE(absl::IsResourceExhausted(third->status)) << third->status;
  EXPECT_EQ(Row("a").leased_blocks, 32u);
  EXPECT_EQ(Acquire(b, 0)->matched_blocks, 16u);
  ASSERT_TRUE(f->core->Release(a.session, first->lease, {}).ok());
  EXPECT_EQ(Acquire(a, 0)->matched_blocks, 16u);

  const auto reserve = [&](const User& user, uint32_t branch) {
    return f->core
        ->Reserve(user.session, user.opened.id, std::nullopt, 0, Prompt(user, branch),
                  TierKind::kDram)
        .status();
  };
  EXPECT_TRUE(reserve(a, 1).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(reserve(a, 2)));
  EXPECT_TRUE(reserve(b, 1).ok());
  f->core->CloseSession(a.session);
  EXPECT_EQ(Row("a").leased_blocks + Row("a").reserved_blocks, 0u);
}

TEST_F(TenantsTest, OneTenantCannotTakeAllSessions) {
  StoreFixture::Options o = DramOnly(4);
  o.store.sessions_max = 8;
  Make(o);
  int opened = 0;
  while (f->core->OpenSession("a").ok()) ++opened;
  EXPECT_EQ(opened, 6);
  EXPECT_TRUE(f->core->OpenSession("b").ok());
  EXPECT_EQ(Row("a").sessions, 6u);
}

// --- Accounts

TEST_F(TenantsTest, AccountsSayWhatIsReservedAndWhatIsResident) {
  Make(DramOnly(8));
  const User a = Join("a");
  Put(a, 0);
  const auto r =
      f->core->Reserve(a.session, a.opened.id, std::nullopt, 0, Prompt(a, 1, 10), TierKind::kDram);
  EXPECT_EQ(In("a").used_bytes, 26 * kSlotBytes);
  EXPECT_EQ(In("a").reserved_bytes, 10 * kSlotBytes);
  EXPECT_EQ(In("a").pages, 16u);
  EXPECT_EQ(Row("a").reservations, 1u);
  ASSERT_TRUE(f->core->Abort(a.session, r->reservation).ok());
  f->core->Verify(TierKind::kDram, store::VerifyMode::kDropBad, [](auto) {});
  f->executor.RunUntilIdle();
  EXPECT_GT(In("a").reserved_bytes, 0u) << "scratch pages of a check";
  EXPECT_TRUE(f->core->CheckInvariants().ok()) << f->core->CheckInvariants();
  f->Settle();
  EXPECT_EQ(In("a").used_bytes, 16 * kSlotBytes);
  EXPECT_EQ(In("a").reserved_bytes, 0u);
}

// Accounts stay exact, quotas and shares hold, over random work of five tenants with two slot sizes
// on faulty tiers.
TEST_F(TenantsTest, AccountsStayExactUnderRandomWorkAndFaults) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  const auto below = [&](uint32_t n) { return static_cast<uint32_t>(random() % n); };
  StoreFixture::Options o;
  o.gpu.num_slabs = 3;
  o.dram.num_slabs = 7;
  o.nvme.num_slabs = 11;
  for (FaultyTier::Options* tier : {&o.gpu, &o.dram, &o.nvme}) tier->fault_rate = 0.01;
  Make(o);
  std::vector<std::unique_ptr<Acquired>> leases;  // news of them may come until the end
  std::vector<User> users;
  for (uint32_t i = 0; i < 5; ++i) {
    users.push_back(Join("t" + std::to_string(i)));
    users.push_back(Join("t" + std::to_string(i), 9000));
  }
  for (int step = 0; step < 20'000; ++step) {
    const User& user = users[below(10)];
    switch (below(8)) {
      case 0:
      case 1:
      case 2:
        f->Put(user.session, user.opened.id, Prompt(user, below(30), 1 + below(40)),
               below(3) == 0 ? TierKind::kGpu : TierKind::kDram);
        break;
      case 3: {
        const auto& lease = leases.emplace_back(Acquire(user, below(30), 40));
        if (lease->lease.value() != 0 && below(8) != 0) {
          ASSERT_TRUE(f->core->Release(user.session, lease->lease, {}).ok());
        }
        break;
      }
      case 4:
        if (below(20) == 0) {
          SetQuota("t" + std::to_string(below(5)), below(3) == 0 ? 0 : below(400),
                   static_cast<TierKind>(below(3)))
              .IgnoreError();
        }
        break;
      case 5:
        if (below(200) == 0) f->clock.Advance(o.store.lease_time);
        break;
      default:
        f->clock.Advance(absl::Milliseconds(below(20)));
        for (uint32_t n = below(40); n > 0 && f->executor.RunOne(); --n) {
        }
    }
    if (step % 200 == 0) {
      const absl::Status status = f->core->CheckInvariants();
      ASSERT_TRUE(status.ok()) << status << " at step " << step;
    }
  }
  for (const User& user : users) f->core->CloseSession(user.session);
  f->Settle(absl::Minutes(2));
  for (const TenantRow& row : f->core->ListTenants()) {
    EXPECT_EQ(row.sessions + row.leased_blocks + row.reserved_blocks + row.moves, 0u) << row.name;
    for (const TenantRow::InTier& in : row.tiers) {
      EXPECT_EQ(in.reserved_bytes, 0u) << row.name;
      if (in.quota_bytes > 0) {
        EXPECT_LE(in.used_bytes, in.quota_bytes) << row.name;
      }
    }
  }
}

}  // namespace
}  // namespace kvstore::tests
