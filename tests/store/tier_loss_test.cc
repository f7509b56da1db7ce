// R16, the store's side: a tier whose device is gone loses its copies, and nobody is told to read
// them meanwhile.
#include "tests/store/store_fixture.h"

namespace kvstore::tests {
namespace {

class TierLossTest : public testing::Test {
 protected:
  TierLossTest() {
    f = std::make_unique<StoreFixture>();
    opened = f->Open(TestSpec("m"));
    ns = opened.id;
    session = *f->core->OpenSession("default");
  }
  ~TierLossTest() override {
    const absl::Status status = f->core->CheckInvariants();
    EXPECT_TRUE(status.ok()) << status;
  }
  std::vector<BlockHash> Hashes(uint32_t branch, size_t n) {
    return Chain(opened.fingerprint, branch, n);
  }
  std::unique_ptr<Acquired> Acquire(const std::vector<BlockHash>& hashes) {
    auto acquired = std::make_unique<Acquired>();
    f->core->Acquire(session, ns, hashes, {.can_read_gpu = true}, acquired->Observer());
    return acquired;
  }
  uint64_t BytesOnGpu() { return f->core->ListNamespaces()[0].bytes_by_tier[0]; }

  std::unique_ptr<StoreFixture> f;
  store::Store::OpenedNamespace opened;
  NamespaceId ns;
  SessionId session;
};

TEST_F(TierLossTest, CopiesLeaveTheIndexAndThoseElsewhereAreRead) {
  const auto hashes = Hashes(1, 20);
  ASSERT_EQ(f->Put(session, ns, hashes, TierKind::kGpu), 20u);
  f->Settle();  // DRAM has its copies
  ASSERT_GT(BytesOnGpu(), 0u);
  f->gpu.Lose();
  const auto at_once = Acquire(hashes);  // before the index has changed
  for (const auto& ready : at_once->ready) EXPECT_NE(ready.from, TierKind::kGpu);
  f->Settle();
  EXPECT_EQ(BytesOnGpu(), 0u);
  EXPECT_EQ(f->core->status().tiers[0].counters.lost_pages, 20u);
  const auto later = Acquire(hashes);
  f->Settle();
  EXPECT_EQ(later->matched_blocks, 20u);
  ASSERT_EQ(later->ready.size(), 20u);
  for (const auto& ready : later->ready) EXPECT_EQ(ready.from, TierKind::kDram);
}

TEST_F(TierLossTest, BlocksThatLayNowhereElseAreMisses) {
  const auto hashes = Hashes(2, 10);
  f->gpu.FailNextReads(1000, absl::UnavailableError("gone"));  // nothing is written behind
  ASSERT_EQ(f->Put(session, ns, hashes, TierKind::kGpu), 10u);
  f->gpu.Lose();
  f->Settle();
  EXPECT_EQ(BytesOnGpu(), 0u);
  const auto acquired = Acquire(hashes);
  f->Settle();
  EXPECT_EQ(acquired->ready.size(), 0u);
}

TEST_F(TierLossTest, WhatIsBeingSavedThereIsNotPublished) {
  const auto hashes = Hashes(3, 5);
  const auto reserved = f->core->Reserve(session, ns, std::nullopt, 0, hashes, TierKind::kGpu);
  ASSERT_TRUE(reserved.ok());
  f->gpu.Lose();
  f->Settle(absl::Milliseconds(50));
  std::vector<store::CommitBlock> commit;
  for (uint32_t i = 0; i < 5; ++i)
    commit.push_back({.block = i, .page_checksum = ContentOf(hashes[i])});
  EXPECT_TRUE(absl::IsAborted(f->core->Commit(session, reserved->reservation, commit)));
  f->Settle();
  EXPECT_EQ(BytesOnGpu(), 0u);
  EXPECT_EQ(Acquire(hashes)->matched_blocks, 0u);
  EXPECT_EQ(f->Put(session, ns, hashes, TierKind::kDram), 5u) << "it can be saved elsewhere";
}

TEST_F(TierLossTest, LeasedCopiesGoToo) {
  const auto hashes = Hashes(4, 8);
  ASSERT_EQ(f->Put(session, ns, hashes, TierKind::kGpu), 8u);
  const auto lease = Acquire(hashes);
  ASSERT_EQ(lease->ready.size(), 8u);
  f->gpu.Lose();
  f->Settle();
  EXPECT_EQ(BytesOnGpu(), 0u);
  EXPECT_TRUE(f->core->Release(session, lease->lease, {}).ok());
}

}  // namespace
}  // namespace kvstore::tests
