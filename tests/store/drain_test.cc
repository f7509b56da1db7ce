// A drain: what it writes, what it refuses, what it tells.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/store/store_test.h"

namespace kvstore::tests {
namespace {

TEST_F(StoreTest, DrainWritesBackWhatIsOnlyInMemoryAndRefusesSaves) {
  StoreFixture::Options o = Without(false, true);
  o.store.policy.write_to_nvme = policy::WriteMode::kBack;
  Make(o);
  f->Put(session, ns, Hashes(1, 20));
  bool drained = false;
  f->core->Drain([&](auto result) { drained = result.ok(); });
  EXPECT_TRUE(absl::IsUnavailable(
      f->core->Reserve(session, ns, std::nullopt, 0, Hashes(2, 1), TierKind::kDram).status()));
  f->Settle();
  EXPECT_TRUE(drained);
  EXPECT_EQ(UsedPages(f->nvme), 20u);
}

TEST_F(StoreTest, DrainWritesMoreThanTheQueueHolds) {
  StoreFixture::Options o = Without(false, true);
  o.store.policy.write_to_nvme = policy::WriteMode::kBack;
  o.dram.num_slabs = o.nvme.num_slabs = 256;  // 16,384 slots, so that no watermark is reached
  Make(o);
  for (uint32_t branch = 1; branch <= 5; ++branch) f->Put(session, ns, Hashes(branch, 1000));
  ASSERT_EQ(UsedPages(f->nvme), 0u);
  bool drained = false;
  f->core->Drain([&](auto result) { drained = result.ok(); });
  f->Settle(absl::Seconds(60));
  EXPECT_TRUE(drained);
  EXPECT_EQ(UsedPages(f->nvme), 5000u);
}

TEST_F(StoreTest, ADrainTellsWhatItWroteAndWhatOnlyMemoryHolds) {
  StoreFixture::Options o = Without(false, true);
  o.store.policy.write_to_nvme = policy::WriteMode::kBack;
  Make(o);
  f->Put(session, ns, Hashes(1, 20));
  absl::StatusOr<store::DrainResult> first = absl::InternalError("not called");
  absl::StatusOr<store::DrainResult> second = absl::InternalError("not called");
  f->core->Drain([&](auto result) { first = result; });
  f->core->Drain([&](auto result) { second = result; });  // joins
  EXPECT_TRUE(f->core->status().is_draining);
  f->Settle();
  ASSERT_TRUE(first.ok() && second.ok()) << first.status() << second.status();
  EXPECT_EQ(first->written_blocks, 20u);
  EXPECT_EQ(first->memory_only_blocks, 0u);
  EXPECT_EQ(second->written_blocks, 20u);
  EXPECT_EQ(f->core->drain_progress().waiting_blocks, 0u);
}

TEST_F(StoreTest, ADrainThatTheDiskDoesNotTakeEndsAndSaysWhatIsLeft) {
  StoreFixture::Options o = Without(false, true);
  o.store.policy.write_to_nvme = policy::WriteMode::kBack;
  Make(o);
  f->Put(session, ns, Hashes(1, 20));
  f->nvme.set_state(tiers::TierState::kReadOnly);
  absl::StatusOr<store::DrainResult> result = absl::InternalError("not called");
  f->core->Drain([&](auto r) { result = r; });
  f->Settle();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->written_blocks, 0u);
  EXPECT_EQ(result->memory_only_blocks, 20u);
  // The disk is well again: a second drain finds what the first one could not write.
  f->nvme.set_state(tiers::TierState::kServing);
  f->core->Drain([&](auto r) { result = r; });
  f->Settle();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->memory_only_blocks, 0u);
  EXPECT_EQ(UsedPages(f->nvme), 20u);
}

TEST_F(StoreTest, ResumeTakesSavesAgainAndEndsARunningDrain) {
  StoreFixture::Options o = Without(false, true);
  o.store.policy.write_to_nvme = policy::WriteMode::kBack;
  Make(o);
  f->Put(session, ns, Hashes(1, 20));
  absl::StatusOr<store::DrainResult> result = absl::InternalError("not called");
  f->core->Drain([&](auto r) { result = r; });
  f->core->Resume();
  EXPECT_TRUE(absl::IsCancelled(result.status())) << result.status();
  EXPECT_FALSE(f->core->status().is_draining);
  EXPECT_EQ(f->Put(session, ns, Hashes(2, 5)), 5u);
  f->Settle();
  f->core->Drain([&](auto r) { result = r; });
  f->Settle();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(UsedPages(f->nvme), 25u);
}

// Who is in the middle of a save may finish it, and its blocks are not left behind in memory.
TEST_F(StoreTest, WhatIsCommittedDuringADrainIsWrittenAtOnce) {
  StoreFixture::Options o = Without(false, true);
  o.store.policy.write_to_nvme = policy::WriteMode::kBack;
  Make(o);
  const auto hashes = Hashes(1, 4);
  const auto reserved = f->core->Reserve(session, ns, std::nullopt, 0, hashes, TierKind::kDram);
  ASSERT_TRUE(reserved.ok());
  bool drained = false;
  f->core->Drain([&](auto result) { drained = result.ok(); });
  f->Settle();
  EXPECT_TRUE(drained);
  std::vector<store::CommitBlock> commit;
  for (uint32_t i = 0; i < hashes.size(); ++i) {
    const uint64_t content = ContentOf(hashes[i]);
    std::memcpy(reserved->blocks[i].location.address, &content, sizeof content);
    commit.push_back({.block = i, .page_checksum = content});
  }
  ASSERT_TRUE(f->core->Commit(session, reserved->reservation, commit).ok());
  f->Settle();
  EXPECT_EQ(UsedPages(f->nvme), 4u);
}

}  // namespace
}  // namespace kvstore::tests
