// What a tenant keeps while another one floods a tier, and how memory goes to whom it is owed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/store/store_tenants_test.h"

namespace kvstore::tests {
namespace {

// S5: A floods ten times the tier; what B has stays.
TEST_F(TenantsTest, AFloodTakesNothingFromATenantWithinItsShare) {
  Make(DramOnly(8));
  const User a = Join("a"), b = Join("b");
  constexpr uint32_t kPrompts = 12;  // 192 blocks: 3 slabs of 8
  for (uint32_t branch = 0; branch < kPrompts; ++branch) PutAll(b, branch);
  uint32_t hits = 0, asked = 0;
  for (uint32_t branch = 0; branch < 320; ++branch) {
    Put(a, branch);
    hits += Matched(b, branch % kPrompts);
    asked += 16;
  }
  EXPECT_GE(hits, asked * 99 / 100);
  EXPECT_EQ(MatchedOf(b, 0, kPrompts), kPrompts * 16);
  EXPECT_GE(In("a").used_bytes, 4 * kSlabSlots * kSlotBytes) << "A has at least its share";
}

TEST_F(TenantsTest, AFloodOnNvmeTakesNothingFromATenantWithinItsShare) {
  StoreFixture::Options o;
  o.has_gpu = false;
  o.dram.num_slabs = 8;
  o.nvme.num_slabs = 8;
  Make(o);
  const User a = Join("a"), b = Join("b");
  for (uint32_t branch = 0; branch < 12; ++branch) PutAll(b, branch);
  f->Settle();
  for (uint32_t branch = 0; branch < 200; ++branch) {
    Put(a, branch);
    f->Settle(absl::Milliseconds(50));
  }
  EXPECT_EQ(f->core->Evict(b.opened.id, TierKind::kDram).skipped_blocks, 0u)
      << "all of it has a copy on NVMe";
  EXPECT_EQ(MatchedOf(b, 0, 12), 192u);
}

TEST_F(TenantsTest, FreeSpaceBeyondAShareIsUsedUntilItsOwnerNeedsIt) {
  Make(DramOnly(8));
  const User a = Join("a"), b = Join("b");
  for (uint32_t branch = 0; branch < 32; ++branch) EXPECT_EQ(Put(b, branch), 16u);
  EXPECT_EQ(In("b").used_bytes, 8 * kSlabSlots * kSlotBytes) << "all of the tier";
  for (uint32_t branch = 0; branch < 32; ++branch) PutAll(a, branch);
  EXPECT_GE(In("a").used_bytes + kSlabSlots * kSlotBytes, 4 * kSlabSlots * kSlotBytes)
      << "within a slab of its share";
  EXPECT_GE(In("b").used_bytes, 4 * kSlabSlots * kSlotBytes);
  EXPECT_GE(MatchedOf(b, 16, 32), 12 * 16u) << "the older ones went first";
}

TEST_F(TenantsTest, SlabsDoNotSwingBetweenTenantsAtTheirShares) {
  Make(DramOnly(8));
  std::vector<User> users;
  for (const char* tenant : {"a", "b", "c"}) users.push_back(Join(tenant));
  for (uint32_t branch = 0; branch < 40; ++branch) {
    for (const User& user : users) Put(user, branch);
  }
  const uint64_t settled = ReclaimedSlabs();
  for (uint32_t branch = 40; branch < 400; ++branch) {
    for (const User& user : users) EXPECT_EQ(Put(user, branch), 16u);
  }
  EXPECT_LE(ReclaimedSlabs(), settled + 1);
}

TEST_F(TenantsTest, WithMoreTenantsThanSlabsTheyTakeTurns) {
  Make(DramOnly(4));
  std::vector<User> users;
  for (uint32_t i = 0; i < 9; ++i) users.push_back(Join("tenant-" + std::to_string(i)));
  for (uint32_t branch = 0; branch < 3; ++branch) {
    for (const User& user : users) PutAll(user, branch);
  }
}

TEST_F(TenantsTest, AQuotaBelowTheEvenPartLeavesTheRestToTheOthers) {
  Make(DramOnly(8));
  const User a = Join("a"), b = Join("b");
  ASSERT_TRUE(SetQuota("a", kSlabSlots).ok());
  Put(a, 0);
  Put(b, 0);
  EXPECT_EQ(In("a").share_bytes, 1 * kSlabSlots * kSlotBytes);
  EXPECT_EQ(In("b").share_bytes, 7 * kSlabSlots * kSlotBytes);
}

// R14: page reuse against readers, by the way that memory takes between tenants.
TEST_F(TenantsTest, ASlabIsNotTakenFromUnderALease) {
  Make(DramOnly(4));
  const User a = Join("a"), b = Join("b");
  for (uint32_t branch = 0; branch < 16; ++branch) Put(a, branch);
  std::vector<std::unique_ptr<Acquired>> leases;
  for (uint32_t branch = 0; branch < 16; branch += 2) leases.push_back(Acquire(a, branch));
  for (uint32_t branch = 0; branch < 40; ++branch) {
    Put(b, branch);
    f->Settle(absl::Milliseconds(100));
    for (uint32_t i = 0; i < leases.size(); ++i) {
      for (const auto& ready : leases[i]->ready)
        ASSERT_TRUE(HasContent(ready.location.address, Prompt(a, 2 * i)[ready.block]))
            << "a leased page was reused";
    }
    ASSERT_TRUE(f->core->CheckInvariants().ok()) << f->core->CheckInvariants();
  }
  for (const auto& lease : leases) ASSERT_TRUE(f->core->Release(a.session, lease->lease, {}).ok());
  for (uint32_t branch = 40; branch < 50; ++branch) PutAll(b, branch);
  EXPECT_GE(In("b").used_bytes, kSlabSlots * kSlotBytes);
}

// More slots than a step empties: the slab is closed to its owner, who floods, meanwhile.
TEST_F(TenantsTest, ALargeSlabIsEmptiedStepByStepAgainstItsOwnersFlood) {
  StoreFixture::Options o = DramOnly(4);
  o.dram.slab_bytes = 4096 * kSlotBytes;
  Make(o);
  const User a = Join("a"), b = Join("b");
  uint32_t flood = 0;
  while (In("a").used_bytes < 4 * 4096 * kSlotBytes) ASSERT_GT(Put(a, flood++, 1000), 0u);
  bool has_waited = false;
  for (uint32_t i = 0; i < 40 && Matched(b, 0) < 16; ++i) {
    has_waited |= f->Put(b.session, b.opened.id, Prompt(b, 0)) < 16;
    for (int j = 0; j < 2; ++j) f->Put(a.session, a.opened.id, Prompt(a, flood++, 100));
    f->executor.RunOne();
  }
  EXPECT_TRUE(has_waited) << "a step took too much of the core thread";
  EXPECT_EQ(Matched(b, 0), 16u);
}

TEST_F(TenantsTest, EmptyingASlabTakesTheTailsOfPromptsBeforeTheirHeads) {
  StoreFixture::Options o;
  o.has_gpu = false;
  o.dram.num_slabs = 4;
  Make(o);
  const User a = Join("a"), b = Join("b");
  for (uint32_t branch = 0; branch < 4; ++branch) Put(a, branch, 64);  // a slab each
  f->Settle();
  Put(b, 0);
  uint32_t whole = 0, gone = 0;
  for (uint32_t branch = 0; branch < 4; ++branch) {
    const auto by_tier = f->core->Match(a.opened.id, Prompt(a, branch, 64)).by_tier;
    whole += by_tier[1] == 64;
    gone += by_tier[1] == 0;
  }
  EXPECT_EQ(whole, 3u);
  EXPECT_EQ(gone, 1u);
  EXPECT_EQ(f->core->Match(a.opened.id, Prompt(a, 0, 64)).by_tier[1], 0u) << "the oldest";
}

}  // namespace
}  // namespace kvstore::tests
