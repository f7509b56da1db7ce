// Leases that hear of single slices: what is told when, to whom, and what a failure does to it.
#include <cstring>

#include "tests/store/store_test.h"

namespace kvstore::tests {
namespace {

constexpr PageShape kShape{.num_slices = 4, .slice_bytes = 64};
constexpr size_t kBlocks = 3;

class SliceReadiness : public testing::Test {
 protected:
  SliceReadiness() : f_(Without(/*gpu=*/false, /*nvme=*/true)) {
    NamespaceSpec spec = TestSpec("sliced");
    spec.shape = kShape;
    ns_ = f_.Open(spec).id;
    session_ = *f_.core->OpenSession("default");
    hashes_ = Chain(spec.ComputeFingerprint(), 1, kBlocks);
    f_.Put(session_, ns_, hashes_);
    f_.Settle();
    EXPECT_EQ(f_.core->Evict(ns_, TierKind::kDram).blocks, kBlocks);
  }
  ~SliceReadiness() override { EXPECT_TRUE(f_.core->CheckInvariants().ok()); }
  void Acquire(Acquired& acquired, bool by_slices) {
    f_.core->Acquire(session_, ns_, hashes_, {.by_slices = by_slices}, acquired.Observer());
  }
  // What was told of one block, in order.
  static std::vector<std::optional<uint32_t>> Told(const Acquired& acquired, uint32_t block) {
    std::vector<std::optional<uint32_t>> told;
    for (const auto& ready : acquired.ready) {
      if (ready.block == block) told.push_back(ready.leading_slices);
    }
    return told;
  }

  StoreFixture f_;
  NamespaceId ns_;
  SessionId session_;
  std::vector<BlockHash> hashes_;
};

TEST_F(SliceReadiness, SlicesAreToldBeforePagesAndPagesAtLast) {
  Acquired acquired;
  Acquire(acquired, true);
  f_.Settle();
  EXPECT_TRUE(acquired.is_last);
  EXPECT_EQ(acquired.matched_blocks, kBlocks);
  for (uint32_t block = 0; block < kBlocks; ++block) {
    const auto told = Told(acquired, block);
    ASSERT_GE(told.size(), 2u);
    EXPECT_EQ(told.back(), std::nullopt);
    for (size_t i = 0; i + 1 < told.size(); ++i) {
      ASSERT_TRUE(told[i].has_value());
      EXPECT_LT(*told[i], kShape.num_slices);
      EXPECT_TRUE(i == 0 || *told[i] > *told[i - 1]);
    }
  }
  for (const auto& ready : acquired.ready)
    EXPECT_TRUE(HasContent(ready.location.address, hashes_[ready.block]));
}

TEST_F(SliceReadiness, WhoDidNotAskHearsOfPagesOnly) {
  Acquired slices, pages;
  Acquire(slices, true);
  Acquire(pages, false);
  f_.Settle();
  for (uint32_t block = 0; block < kBlocks; ++block) {
    EXPECT_GE(Told(slices, block).size(), 2u);
    EXPECT_EQ(Told(pages, block), (std::vector<std::optional<uint32_t>>{std::nullopt}));
  }
}

TEST_F(SliceReadiness, WhoComesLaterHearsWhatIsThereAlready) {
  Acquired first, later;
  Acquire(first, true);
  for (int i = 0; i < 100 && first.ready.empty(); ++i) f_.executor.RunOne();
  ASSERT_FALSE(first.ready.empty());
  ASSERT_TRUE(first.ready.front().leading_slices.has_value());
  Acquire(later, true);
  ASSERT_EQ(later.num_updates, 1);
  ASSERT_FALSE(later.ready.empty());
  EXPECT_EQ(later.ready.front().location.page, first.ready.front().location.page);
  f_.Settle();
  EXPECT_TRUE(first.is_last && later.is_last);
}

// The reader of a slice learns from the slot's generation, and from the match, that it was lost.
TEST_F(SliceReadiness, ALaterSliceThatIsBadShortensThePrefix) {
  f_.nvme.FailNextReads(kBlocks, absl::DataLossError("differs"));
  Acquired acquired;
  Acquire(acquired, true);
  f_.Settle();
  EXPECT_TRUE(acquired.is_last);
  EXPECT_EQ(acquired.matched_blocks, 0u);
  EXPECT_FALSE(acquired.status.ok());
  ASSERT_FALSE(acquired.ready.empty()) << "slices were told before";
  for (const auto& ready : acquired.ready) EXPECT_TRUE(ready.leading_slices.has_value());
  EXPECT_EQ(f_.dram.stats().used_pages, 0u) << "the page is given back";
}

TEST_F(SliceReadiness, NothingIsToldAfterTheLeaseHasEnded) {
  Acquired acquired;
  Acquire(acquired, true);
  for (int i = 0; i < 100 && acquired.ready.empty(); ++i) f_.executor.RunOne();
  const int updates = acquired.num_updates;
  EXPECT_TRUE(f_.core->Release(session_, acquired.lease, {}).ok());
  f_.Settle();
  EXPECT_EQ(acquired.num_updates, updates);
  Acquired again;  // the moves went on
  Acquire(again, true);
  EXPECT_TRUE(again.is_last);
}

TEST_F(SliceReadiness, NobodyIsToldALateSlice) {
  Acquired acquired;
  Acquire(acquired, true);
  f_.nvme.Hang();
  f_.Settle(absl::Seconds(4));  // longer than limits.move_deadline
  EXPECT_EQ(acquired.matched_blocks, 0u);
  const int updates = acquired.num_updates;
  f_.nvme.LetGo();
  f_.Settle();
  EXPECT_EQ(acquired.num_updates, updates);
}

TEST(AcquireUpdate, KeepsWhatWasSaidLastOfEachBlock) {
  AcquireUpdate update;
  for (const auto& [block, slices] :
       std::vector<std::pair<uint32_t, std::optional<uint32_t>>>{{0, 1}, {1, 1}, {0, 3}, {1, {}}})
    update.ready.push_back({.block = block, .from = {}, .location = {}, .leading_slices = slices});
  update.KeepLatest();
  ASSERT_EQ(update.ready.size(), 2u);
  EXPECT_EQ(update.ready[0].block, 0u);
  EXPECT_EQ(update.ready[0].leading_slices, 3u);
  EXPECT_EQ(update.ready[1].leading_slices, std::nullopt);
}

}  // namespace
}  // namespace kvstore::tests
