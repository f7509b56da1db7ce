// A disk that is slow, silent or refused for a while: who waits for it, and what is left
// afterwards.
#include <gtest/gtest.h>

#include "tests/store/store_fixture.h"

namespace kvstore::tests {
namespace {

class SlowDiskTest : public testing::Test {
 protected:
  SlowDiskTest() {
    StoreFixture::Options o;
    o.has_gpu = false;
    f = std::make_unique<StoreFixture>(o);
    ns = f->Open(TestSpec("m")).id;
    fingerprint = TestSpec("m").ComputeFingerprint();
    session = *f->core->OpenSession("default");
  }
  ~SlowDiskTest() override {
    const absl::Status status = f->core->CheckInvariants();
    EXPECT_TRUE(status.ok()) << status;
  }
  // Ten blocks, on disk only.
  std::vector<BlockHash> OnDiskOnly() {
    const auto hashes = Chain(fingerprint, 1, 10);
    f->Put(session, ns, hashes);
    f->Settle();
    f->core->Evict(ns, TierKind::kDram);
    EXPECT_EQ(f->dram.stats().used_pages, 0u);
    return hashes;
  }
  std::unique_ptr<Acquired> Acquire(const std::vector<BlockHash>& hashes) {
    auto acquired = std::make_unique<Acquired>();
    f->core->Acquire(session, ns, hashes, {}, acquired->Observer());
    return acquired;
  }
  // Runs up to `duration` from now, no timer beyond.
  void Run(absl::Duration duration) {
    const absl::Time end = f->clock.Now() + duration;
    f->Settle(duration);
    f->clock.Advance(end - f->clock.Now());
    f->executor.RunUntilIdle();
  }

  std::unique_ptr<StoreFixture> f;
  NamespaceId ns;
  Fingerprint fingerprint;
  SessionId session;
};

TEST_F(SlowDiskTest, ALoadThatHangsIsAMissAtItsDeadlineAndItsPageIsNotReused) {
  const auto hashes = OnDiskOnly();
  f->nvme.Hang();
  const auto a = Acquire(hashes);
  Run(absl::Milliseconds(1999));
  EXPECT_FALSE(a->is_last);
  Run(absl::Milliseconds(1));  // limits.move_deadline
  EXPECT_TRUE(a->is_last);
  EXPECT_EQ(a->matched_blocks, 0u);
  EXPECT_TRUE(absl::IsDeadlineExceeded(a->status)) << a->status;
  EXPECT_EQ(f->dram.stats().used_pages, 10u) << "the disk may still write there";
  EXPECT_TRUE(f->core->Release(session, a->lease, {}).ok());
  Run(absl::Seconds(60));
  EXPECT_EQ(f->dram.stats().used_pages, 10u);
  f->nvme.LetGo();
  Run(absl::Seconds(1));
  EXPECT_EQ(f->dram.stats().used_pages, 0u);
  const auto again = Acquire(hashes);
  Run(absl::Seconds(1));
  EXPECT_EQ(again->matched_blocks, 10u) << "the copies were never lost";
  EXPECT_EQ(f->core->status().moves_in_flight, 0u);
}

TEST_F(SlowDiskTest, WhoeverAsksForABlockWhoseLoadIsLateIsToldAtOnce) {
  const auto hashes = OnDiskOnly();
  f->nvme.Hang();
  const auto a = Acquire(hashes);
  Run(absl::Seconds(2));
  const auto late = Acquire(hashes);
  Run(absl::ZeroDuration());
  EXPECT_TRUE(late->is_last);
  EXPECT_EQ(late->matched_blocks, 0u);
  EXPECT_TRUE(absl::IsUnavailable(late->status)) << late->status;
  f->nvme.LetGo();
  Run(absl::Seconds(1));
}

// More loads than the tier takes at a time: those that it has not been given have no deadline yet.
TEST_F(SlowDiskTest, LoadsThatWaitInTheQueueEndWhenTheTierIsGivenUp) {
  const auto hashes = Chain(fingerprint, 1, 40);  // inflight_max is 16
  f->Put(session, ns, hashes);
  Run(absl::Seconds(5));
  f->core->Evict(ns, TierKind::kDram);
  f->nvme.Hang();
  const auto tail = Acquire(hashes);
  Run(absl::Seconds(2));
  EXPECT_TRUE(tail->is_last) << "its first block is late";
  EXPECT_EQ(f->core->status().moves_in_flight, 40u);
  f->nvme.set_state(tiers::TierState::kFailed);
  Run(absl::Milliseconds(100));
  EXPECT_EQ(f->core->status().moves_in_flight, 16u) << "only what the device holds is left";
  f->nvme.LetGo();
  Run(absl::Seconds(1));
  EXPECT_EQ(f->core->status().moves_in_flight, 0u);
}

TEST_F(SlowDiskTest, ATierThatHasFailedIsAMissAtOnceAndComesBackWithAllItsCopies) {
  const auto hashes = OnDiskOnly();
  f->nvme.set_state(tiers::TierState::kFailed);
  const auto a = Acquire(hashes);
  EXPECT_TRUE(a->is_last) << "in the first update";
  EXPECT_EQ(a->matched_blocks, 0u);
  EXPECT_TRUE(absl::IsUnavailable(a->status)) << a->status;
  f->nvme.set_state(tiers::TierState::kServing);
  const auto again = Acquire(hashes);
  Run(absl::Seconds(1));
  EXPECT_EQ(again->matched_blocks, 10u);
}

TEST_F(SlowDiskTest, UnavailableReadsKeepTheCopyAndLostOnesDropIt) {
  const auto hashes = OnDiskOnly();
  f->nvme.FailNextReads(4, absl::UnavailableError("not now"));
  const auto refused = Acquire(hashes);
  Run(absl::Seconds(1));
  EXPECT_EQ(f->nvme.stats().used_pages, 10u);
  EXPECT_EQ(f->nvme.stats().quarantined_pages, 0u);
  EXPECT_LT(refused->matched_blocks, 10u);
  f->core->Release(session, refused->lease, {}).IgnoreError();
  f->core->Evict(ns, TierKind::kDram);
  f->nvme.FailNextReads(1, absl::DataLossError("this page"));
  const auto a = Acquire(hashes);
  Run(absl::Seconds(1));
  EXPECT_EQ(f->nvme.stats().quarantined_pages, 1u);
}

TEST_F(SlowDiskTest, AVerificationThatCannotReadDropsNothingAndSaysSo) {
  OnDiskOnly();
  f->nvme.FailNextReads(1, absl::UnavailableError("not now"));
  absl::StatusOr<store::VerifyResult> result = absl::InternalError("not called");
  f->core->Verify(TierKind::kNvme, store::VerifyMode::kDropBad, [&](auto r) { result = r; });
  Run(absl::Seconds(1));
  EXPECT_TRUE(absl::IsUnavailable(result.status())) << result.status();
  EXPECT_EQ(f->nvme.stats().used_pages, 10u);
  EXPECT_EQ(f->nvme.stats().quarantined_pages, 0u);
}

// Nobody else holds it any more: its lease was released while the disk was silent.
TEST(Loads, ABlockThatIsBeingReadIsNotEvictedFromAFullDisk) {
  StoreFixture::Options options;
  options.has_gpu = false;
  options.nvme.num_slabs = 1;  // 64 pages
  StoreFixture f(options);
  const NamespaceId ns = f.Open(TestSpec("m")).id;
  const Fingerprint fingerprint = TestSpec("m").ComputeFingerprint();
  const SessionId session = *f.core->OpenSession("default");
  const auto read = Chain(fingerprint, 1, 4);
  f.Put(session, ns, read);
  f.Settle();
  ASSERT_EQ(f.core->Evict(ns, TierKind::kDram).blocks, 4u);
  const auto filler = Chain(fingerprint, 2, 60);
  f.Put(session, ns, filler);
  f.Settle();
  ASSERT_EQ(f.core->List(ns, TierKind::kNvme, 100).size(), 64u);
  f.nvme.Hang();
  Acquired loading;
  f.core->Acquire(session, ns, read, {}, loading.Observer());
  f.Settle(absl::Milliseconds(10));
  EXPECT_TRUE(f.core->Release(session, loading.lease, {}).ok());
  Acquired touching;  // the blocks that are read become the oldest
  f.core->Acquire(session, ns, filler, {}, touching.Observer());
  EXPECT_TRUE(f.core->Release(session, touching.lease, {}).ok());
  f.Put(session, ns, Chain(fingerprint, 3, 8));
  f.Settle(absl::Milliseconds(100));
  ASSERT_LT(f.core->List(ns, TierKind::kNvme, 100).size(), 64u) << "no room was made";
  f.nvme.LetGo();
  f.Settle();
  Acquired again;
  f.core->Acquire(session, ns, read, {}, again.Observer());
  f.Settle();
  EXPECT_EQ(again.matched_blocks, 4u);
  EXPECT_EQ(f.nvme.stats().quarantined_pages, 0u);
  EXPECT_TRUE(f.core->CheckInvariants().ok());
}

// More blocks than one retry offers are refused again and again, as those of a namespace whose key
// is missing.
TEST(WriteBehind, BlocksThatAreRefusedDoNotKeepOthersFromADiskThatIsBack) {
  StoreFixture::Options options;
  options.has_gpu = false;
  options.dram.num_slabs = 16;
  options.nvme.inflight_max = 1024;
  options.nvme.delay_max = absl::Milliseconds(1);  // all refusals of a retry are in before the next
  StoreFixture f(options);
  const NamespaceId refused = f.Open(TestSpec("refused")).id;
  const NamespaceId other = f.Open(TestSpec("other")).id;
  const Fingerprint of_refused = TestSpec("refused").ComputeFingerprint();
  const Fingerprint of_other = TestSpec("other").ComputeFingerprint();
  const SessionId session = *f.core->OpenSession("default");
  f.nvme.RefuseWrites([&](const PageIdentity& page) { return page.fingerprint == of_refused; });
  f.nvme.set_state(tiers::TierState::kFailed);
  EXPECT_EQ(f.Put(session, refused, Chain(of_refused, 1, 400)), 400u);
  EXPECT_EQ(f.Put(session, other, Chain(of_other, 1, 20)), 20u);
  f.Settle(absl::Seconds(1));
  f.nvme.set_state(tiers::TierState::kServing);
  f.Settle(absl::Seconds(5));
  EXPECT_EQ(f.core->List(other, TierKind::kNvme, 100).size(), 20u);
}

TEST_F(SlowDiskTest, ANamespaceThatCouldNotBeKeptIsNotOpenAtTheSecondTryEither) {
  f->nvme.FailMetadata(absl::DataLossError("the index is damaged"));
  absl::StatusOr<store::Store::OpenedNamespace> opened;
  const auto open = [&] {
    f->core->OpenNamespace(TestSpec("other"), "", [&](const auto& answer) { opened = answer; });
    f->Settle();
  };
  for (int i = 0; i < 2; ++i) {
    open();
    EXPECT_TRUE(absl::IsDataLoss(opened.status())) << opened.status();
  }
  f->nvme.FailMetadata(absl::OkStatus());
  open();
  EXPECT_TRUE(opened.ok()) << opened.status();
}

TEST_F(SlowDiskTest, ANamespaceOpensWithoutItsDisk) {
  f->nvme.FailMetadata(absl::UnavailableError("not now"));
  EXPECT_NE(f->Open(TestSpec("other")).id, ns);
}

}  // namespace
}  // namespace kvstore::tests
