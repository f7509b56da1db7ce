// Who gives its page when a tier is full.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/store/store_test.h"

namespace kvstore::tests {
namespace {

using store::ReserveState;

TEST_F(StoreTest, EvictNeverRemovesTheLastCopy) {
  Make(Without(false, false));
  const auto hashes = Hashes(1, 5);
  f->Put(session, ns, hashes);
  const auto result = f->core->Evict(ns, TierKind::kDram);
  EXPECT_EQ(result.blocks, 0u);
  EXPECT_EQ(result.skipped_blocks, 5u);
  EXPECT_EQ(f->core->Match(ns, hashes).matched_blocks, 5u);
}

TEST_F(StoreTest, WriteBackCopiesOnlyWhenRoomIsNeeded) {
  StoreFixture::Options o = Without(false, true);
  o.store.policy.write_to_nvme = policy::WriteMode::kBack;
  o.dram.num_slabs = 1;  // 64 slots
  Make(o);
  f->Put(session, ns, Hashes(1, 20));
  f->Settle();
  EXPECT_EQ(UsedPages(f->nvme), 0u);
  for (uint32_t branch = 2; branch < 8; ++branch) {
    f->Put(session, ns, Hashes(branch, 20));
    f->Settle();
  }
  EXPECT_GT(UsedPages(f->nvme), 0u);
  EXPECT_EQ(f->core->Match(ns, Hashes(1, 20)).matched_blocks, 20u) << "demoted, not dropped";
}

TEST_F(StoreTest, EvictionIsLeafFirst) {
  StoreFixture::Options o = Without(false, false);
  o.dram.num_slabs = 1;  // 64 slots
  Make(o);
  f->Put(session, ns, Hashes(1, 40));
  f->Put(session, ns, Hashes(2, 40));
  // The first chain gave its tail, not its head.
  const uint32_t left = f->core->Match(ns, Hashes(1, 40)).matched_blocks;
  EXPECT_EQ(f->core->Match(ns, Hashes(2, 40)).matched_blocks, 40u);
  EXPECT_EQ(left, 24u);
}

// As an engine saves while it computes: parents are older than children, and still the tail goes
// first.
TEST_F(StoreTest, PrefixSavedInPartsIsEvictedFromItsTail) {
  StoreFixture::Options o = Without(false, false);
  o.dram.num_slabs = 32;  // 2,048 slots
  Make(o);
  for (uint32_t branch = 1; branch <= 5; ++branch) {
    const auto hashes = Hashes(branch, 1024);
    for (uint32_t first = 0; first < 1024; first += 64) {
      f->clock.Advance(absl::Seconds(1));
      const std::span<const BlockHash> part(hashes.begin() + first, 64);
      const auto parent = first == 0 ? std::nullopt : std::optional(hashes[first - 1]);
      const auto r = f->core->Reserve(session, ns, parent, first, part, TierKind::kDram);
      ASSERT_TRUE(r.ok()) << r.status();
      std::vector<store::CommitBlock> commit;
      for (uint32_t i = 0; i < 64; ++i) {
        ASSERT_EQ(r->blocks[i].state, ReserveState::kReserved)
            << "branch " << branch << " block " << first + i;
        commit.push_back({.block = i, .page_checksum = ContentOf(part[i])});
      }
      ASSERT_TRUE(f->core->Commit(session, r->reservation, commit).ok());
    }
    EXPECT_EQ(f->core->Match(ns, hashes).matched_blocks, 1024u);
  }
  EXPECT_EQ(f->core->Match(ns, Hashes(4, 1024)).matched_blocks, 1024u)
      << "the older ones went first";
  EXPECT_EQ(f->core->Match(ns, Hashes(3, 1024)).matched_blocks, 0u);
}

// Both tiers full, written through: blocks whose last copy lies in DRAM above a child on NVMe must
// not pile up.
TEST_F(StoreTest, FullTiersOfEqualSizeKeepTakingPrompts) {
  StoreFixture::Options o = Without(false, true);
  o.dram.num_slabs = o.nvme.num_slabs = 8;  // 512 slots each
  Make(o);
  for (uint32_t branch = 1; branch <= 40; ++branch) {
    const auto hashes = Hashes(branch, 100);
    size_t stored = 0;
    for (int attempt = 0; attempt < 20 && stored < 100; ++attempt) {
      stored += f->Put(session, ns, hashes);
      f->Settle();
    }
    ASSERT_EQ(f->core->Match(ns, hashes).matched_blocks, 100u) << "branch " << branch;
  }
}

}  // namespace
}  // namespace kvstore::tests
