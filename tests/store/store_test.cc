// What the store promises, one behaviour a test, on virtual time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/store/store_test.h"

namespace kvstore::tests {
namespace {

using store::ReserveState;
using testing::HasSubstr;

TEST_F(StoreTest, CommittedPrefixIsAcquiredInPlace) {
  const auto hashes = Hashes(1, 10);
  EXPECT_EQ(f->Put(session, ns, hashes), 10u);
  const auto a = Acquire(Hashes(1, 12));
  EXPECT_EQ(a->matched_blocks, 10u);
  EXPECT_TRUE(a->is_last);
  ASSERT_EQ(a->ready.size(), 10u);
  for (uint32_t i = 0; i < 10; ++i)
    EXPECT_TRUE(HasContent(a->ready[i].location.address, hashes[i]));
}

TEST_F(StoreTest, NothingIsMatchedBeforeCommit) {
  const auto hashes = Hashes(1, 3);
  const auto reserved = f->core->Reserve(session, ns, std::nullopt, 0, hashes, TierKind::kDram);
  ASSERT_TRUE(reserved.ok());
  EXPECT_EQ(f->core->Match(ns, hashes).matched_blocks, 0u);
}

TEST_F(StoreTest, FirstWriterWinsAndTheSecondLearnsIt) {
  const auto hashes = Hashes(1, 2);
  const auto first = f->core->Reserve(session, ns, std::nullopt, 0, hashes, TierKind::kDram);
  const auto second = f->core->Reserve(session, ns, std::nullopt, 0, hashes, TierKind::kDram);
  EXPECT_EQ(second->blocks[0].state, ReserveState::kBeingWritten);
  ASSERT_TRUE(f->core->Abort(session, first->reservation).ok());
  EXPECT_EQ(f->Put(session, ns, hashes), 2u);
  const auto third = f->core->Reserve(session, ns, std::nullopt, 0, hashes, TierKind::kDram);
  EXPECT_EQ(third->blocks[1].state, ReserveState::kExists);
}

TEST_F(StoreTest, ReserveNeedsItsParent) {
  const auto hashes = Hashes(1, 4);
  const std::span<const BlockHash> tail(hashes.begin() + 2, 2);
  EXPECT_TRUE(absl::IsFailedPrecondition(
      f->core->Reserve(session, ns, hashes[1], 2, tail, TierKind::kDram).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      f->core->Reserve(session, ns, std::nullopt, 2, tail, TierKind::kDram).status()));
  f->Put(session, ns, {hashes.begin(), hashes.begin() + 2});
  EXPECT_TRUE(f->core->Reserve(session, ns, hashes[1], 2, tail, TierKind::kDram).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(
      f->core->Reserve(session, ns, hashes[1], 3, tail, TierKind::kDram).status()));
}

TEST_F(StoreTest, WriteThroughReachesNvmeAndSurvivesLosingDram) {
  const auto hashes = Hashes(1, 20);
  f->Put(session, ns, hashes);
  f->Settle();
  EXPECT_EQ(UsedPages(f->nvme), 20u);
  EXPECT_EQ(f->core->Evict(ns, TierKind::kDram).blocks, 20u);
  EXPECT_EQ(UsedPages(f->dram), 0u);
  const auto a = Acquire(hashes);
  EXPECT_EQ(a->matched_blocks, 20u);
  EXPECT_TRUE(a->ready.empty()) << "nothing can be read before it came up";
  f->Settle();
  EXPECT_TRUE(a->is_last);
  ASSERT_EQ(a->ready.size(), 20u);
  for (const auto& ready : a->ready) {
    EXPECT_EQ(ready.from, TierKind::kNvme);
    EXPECT_TRUE(HasContent(ready.location.address, hashes[ready.block]));
  }
}

TEST_F(StoreTest, BlocksThatADiskCouldNotTakeReachItWhenItIsBack) {
  f->nvme.set_state(tiers::TierState::kReadOnly);
  f->Put(session, ns, Hashes(1, 20));
  f->Settle(absl::Seconds(1));
  EXPECT_EQ(UsedPages(f->nvme), 0u);
  f->nvme.set_state(tiers::TierState::kServing);
  f->Settle(absl::Seconds(1));
  EXPECT_EQ(UsedPages(f->nvme), 20u);
  EXPECT_TRUE(f->core->CheckInvariants().ok()) << f->core->CheckInvariants();
}

TEST_F(StoreTest, LeasedBlocksAreNotEvicted) {
  StoreFixture::Options o = Without(false, false);
  o.dram.num_slabs = 1;
  Make(o);
  const auto hashes = Hashes(1, 60);
  f->Put(session, ns, hashes);
  const auto a = Acquire(hashes);
  EXPECT_LE(f->Put(session, ns, Hashes(2, 40)), 4u);
  for (const auto& ready : a->ready)
    EXPECT_TRUE(HasContent(ready.location.address, hashes[ready.block]));
  ASSERT_TRUE(f->core->Release(session, a->lease, {}).ok());
  f->Put(session, ns, Hashes(3, 40));
  EXPECT_EQ(f->core->Match(ns, Hashes(3, 40)).matched_blocks, 40u);
}

TEST_F(StoreTest, LeasesOfABlockLeaveRoomForWhoElseHoldsIt) {
  StoreFixture::Options o;
  o.store.leases_per_session_max = 100'000;
  Make(o);
  const auto hashes = Hashes(1, 1);
  f->Put(session, ns, hashes);
  f->Settle();  // its copy to NVMe held it, too
  size_t leases = 0;
  for (int i = 0; i < 66'000; ++i) leases += Acquire(hashes)->matched_blocks;
  EXPECT_EQ(leases, 65'000u);
}

TEST_F(StoreTest, ExpiredLeaseLetsGoAndSaysSo) {
  const auto hashes = Hashes(1, 4);
  f->Put(session, ns, hashes);
  f->Settle();
  const auto a = Acquire(hashes);
  f->clock.Advance(f->options.store.lease_time + absl::Seconds(1));
  f->Settle();
  EXPECT_TRUE(absl::IsNotFound(f->core->Release(session, a->lease, {})));
  EXPECT_EQ(f->core->status().leases, 0u);
  EXPECT_EQ(f->core->status().counters.leases_expired, 1u);
}

TEST_F(StoreTest, RenewedLeaseLivesOn) {
  const auto hashes = Hashes(1, 4);
  f->Put(session, ns, hashes);
  const auto a = Acquire(hashes);
  for (int i = 0; i < 5; ++i) {
    f->clock.Advance(f->options.store.lease_time * 0.8);
    f->executor.RunUntilIdle();
    ASSERT_TRUE(f->core->Renew(session, a->lease).ok()) << i;
  }
  EXPECT_TRUE(f->core->Release(session, a->lease, {}).ok());
}

TEST_F(StoreTest, ClosedSessionReleasesEverything) {
  const auto hashes = Hashes(1, 30);
  f->Put(session, ns, hashes);
  f->Settle();
  f->core->Evict(ns, TierKind::kDram);
  const auto a = Acquire(hashes);  // still on its way up
  ASSERT_TRUE(f->core->Reserve(session, ns, std::nullopt, 0, Hashes(2, 10), TierKind::kDram).ok());
  f->core->CloseSession(session);
  f->Settle();
  const auto status = f->core->status();
  EXPECT_EQ(status.sessions, 0u);
  EXPECT_EQ(status.leases, 0u);
  EXPECT_EQ(status.reservations, 0u);
  EXPECT_EQ(status.moves_in_flight, 0u);
  EXPECT_TRUE(a->ready.empty()) << "no update after the session ended";
  for (const auto& row : f->core->List(ns, std::nullopt, 1000)) EXPECT_EQ(row.leases, 0u);
}

TEST_F(StoreTest, ExpiredReservationCannotPublish) {
  const auto hashes = Hashes(1, 2);
  const auto r = f->core->Reserve(session, ns, std::nullopt, 0, hashes, TierKind::kDram);
  f->clock.Advance(f->options.store.lease_time + absl::Seconds(1));
  f->executor.RunUntilIdle();
  const store::CommitBlock block{.block = 0, .page_checksum = 1};
  EXPECT_TRUE(absl::IsNotFound(f->core->Commit(session, r->reservation, {&block, 1})));
  EXPECT_EQ(UsedPages(f->dram), 0u);
}

TEST_F(StoreTest, OneSessionCannotCommitOrReleaseForAnother) {
  const auto hashes = Hashes(1, 2);
  const SessionId other = *f->core->OpenSession("default");
  const auto r = f->core->Reserve(session, ns, std::nullopt, 0, hashes, TierKind::kDram);
  EXPECT_TRUE(absl::IsNotFound(f->core->Commit(other, r->reservation, {})));
  EXPECT_TRUE(absl::IsNotFound(f->core->Abort(other, r->reservation)));
  ASSERT_TRUE(f->core->Abort(session, r->reservation).ok());
  f->Put(session, ns, hashes);
  const auto a = Acquire(hashes);
  EXPECT_TRUE(absl::IsNotFound(f->core->Release(other, a->lease, {})));
}

TEST_F(StoreTest, TenantsDoNotSeeEachOther) {
  f->Put(session, ns, Hashes(1, 3));
  const SessionId stranger = *f->core->OpenSession("other");
  Acquired a;
  f->core->Acquire(stranger, ns, Hashes(1, 3), {}, a.Observer());
  EXPECT_TRUE(absl::IsNotFound(a.status));
  EXPECT_TRUE(absl::IsNotFound(
      f->core->Reserve(stranger, ns, std::nullopt, 0, Hashes(2, 1), TierKind::kDram).status()));
  EXPECT_TRUE(absl::IsNotFound(f->core->FindNamespace("other", opened.fingerprint).status()));
}

TEST_F(StoreTest, ClearMakesEverythingUnmatchableAtOnceAndSweepsLater) {
  const auto hashes = Hashes(1, 30);
  f->Put(session, ns, hashes);
  f->Settle();
  const auto a = Acquire({hashes.begin(), hashes.begin() + 5});
  f->core->Clear("default", opened.fingerprint, [](absl::Status s) { EXPECT_TRUE(s.ok()) << s; });
  const NamespaceId now = f->core->FindNamespace("default", opened.fingerprint)->id;
  EXPECT_NE(now, ns);
  EXPECT_EQ(f->core->Match(now, hashes).matched_blocks, 0u);
  f->Settle();
  EXPECT_EQ(UsedPages(f->dram), 5u) << "leased blocks stay until their release";
  for (const auto& ready : a->ready)
    EXPECT_TRUE(HasContent(ready.location.address, hashes[ready.block]));
  ASSERT_TRUE(f->core->Release(session, a->lease, {}).ok());
  f->Settle();
  EXPECT_EQ(UsedPages(f->dram), 0u);
  EXPECT_EQ(UsedPages(f->nvme), 0u);
  EXPECT_EQ(f->core->status().blocks, 0u);
}

TEST_F(StoreTest, CommitIntoAClearedNamespaceIsAborted) {
  const auto r = f->core->Reserve(session, ns, std::nullopt, 0, Hashes(1, 2), TierKind::kDram);
  f->core->Clear("default", opened.fingerprint, [](absl::Status) {});
  const store::CommitBlock block{.block = 0, .page_checksum = 1};
  EXPECT_TRUE(absl::IsAborted(f->core->Commit(session, r->reservation, {&block, 1})));
  EXPECT_EQ(UsedPages(f->dram), 0u);
}

TEST_F(StoreTest, CorruptNvmePageTruncatesTheMatchAndIsQuarantined) {
  const auto hashes = Hashes(1, 10);
  f->Put(session, ns, hashes);
  f->Settle();
  f->core->Evict(ns, TierKind::kDram);
  const auto rows = f->core->List(ns, TierKind::kNvme, 100);
  ASSERT_EQ(rows.size(), 10u);
  f->nvme.Corrupt({.slab = 0, .slot = 4});  // of the 10 slots in use
  const auto a = Acquire(hashes);
  f->Settle();
  EXPECT_TRUE(a->is_last);
  EXPECT_LT(a->matched_blocks, 10u);
  EXPECT_TRUE(absl::IsDataLoss(a->status));
  EXPECT_EQ(f->nvme.stats().quarantined_pages, 1u);
  for (const auto& ready : a->ready)
    EXPECT_TRUE(HasContent(ready.location.address, hashes[ready.block]));
}

TEST_F(StoreTest, ReportedBadPageIsVerifiedAndDropped) {
  const auto hashes = Hashes(1, 3);
  f->Put(session, ns, hashes);
  f->Settle();
  const auto a = Acquire(hashes);
  a->ready[1].location.address[0] ^= std::byte{1};  // a scribble in shared memory
  const uint32_t bad[] = {0, 1};
  ASSERT_TRUE(f->core->Release(session, a->lease, bad).ok());
  f->Settle();
  EXPECT_EQ(f->core->status().counters.reported_bad_pages, 2u);
  EXPECT_EQ(f->dram.stats().quarantined_pages, 1u) << "the good one stays";
  const auto b = Acquire(hashes);
  f->Settle();
  EXPECT_EQ(b->matched_blocks, 3u) << "the copy on NVMe takes over";
  EXPECT_TRUE(HasContent(b->ready.back().location.address, hashes[b->ready.back().block]));
}

TEST_F(StoreTest, ScribbledPageIsNotWrittenToNvme) {
  const auto hashes = Hashes(1, 1);
  const auto r = f->core->Reserve(session, ns, std::nullopt, 0, hashes, TierKind::kDram);
  std::memset(r->blocks[0].location.address, 0x55, 8);  // not what the checksum says
  const store::CommitBlock block{.block = 0, .page_checksum = ContentOf(hashes[0])};
  ASSERT_TRUE(f->core->Commit(session, r->reservation, {&block, 1}).ok());
  f->Settle();
  EXPECT_EQ(UsedPages(f->nvme), 0u);
  EXPECT_EQ(f->core->Match(ns, hashes).matched_blocks, 0u);
}

TEST_F(StoreTest, GpuHitNeedsNoMove) {
  const auto hashes = Hashes(1, 8);
  EXPECT_EQ(f->Put(session, ns, hashes, TierKind::kGpu), 8u);
  const auto a = Acquire(hashes, true);
  EXPECT_TRUE(a->is_last);
  for (const auto& ready : a->ready) EXPECT_EQ(ready.location.tier, TierKind::kGpu);
  f->Settle();
  EXPECT_EQ(UsedPages(f->dram), 8u) << "written through";
  EXPECT_EQ(UsedPages(f->nvme), 8u) << "and on";
}

TEST_F(StoreTest, ClientPromotesIntoGpuAndMustBringTheSameBytes) {
  const auto hashes = Hashes(1, 2);
  f->Put(session, ns, hashes);
  const auto r = f->core->Reserve(session, ns, std::nullopt, 0, hashes, TierKind::kGpu);
  ASSERT_EQ(r->blocks[0].state, ReserveState::kReserved);
  store::CommitBlock block{.block = 0, .page_checksum = 12345};
  EXPECT_TRUE(absl::IsDataLoss(f->core->Commit(session, r->reservation, {&block, 1})));
  block.page_checksum = ContentOf(hashes[0]);
  EXPECT_TRUE(f->core->Commit(session, r->reservation, {&block, 1}).ok());
}

TEST_F(StoreTest, FullTierAnswersNoSpaceForTheRestOfTheRun) {
  StoreFixture::Options o = Without(false, false);
  o.dram.num_slabs = 1;
  Make(o);
  const auto r = f->core->Reserve(session, ns, std::nullopt, 0, Hashes(1, 70), TierKind::kDram);
  for (size_t i = 0; i < 70; ++i)
    EXPECT_EQ(r->blocks[i].state, i < 64 ? ReserveState::kReserved : ReserveState::kNoSpace) << i;
}

TEST_F(StoreTest, AFullIndexAnswersNoSpace) {
  StoreFixture::Options o = Without(false, false);
  o.store.blocks_max = 10;
  Make(o);
  EXPECT_EQ(f->Put(session, ns, Hashes(1, 12)), 10u);
  EXPECT_EQ(f->core->status().blocks, 10u);
  EXPECT_EQ(f->core->status().counters.no_space_blocks, 2u);
}

TEST_F(StoreTest, SlabsMoveToThePoolThatNeedsThem) {
  StoreFixture::Options o = Without(false, false);
  o.dram.num_slabs = 2;
  Make(o);
  for (uint32_t branch = 1; branch <= 4; ++branch) f->Put(session, ns, Hashes(branch, 32));
  ASSERT_EQ(UsedPages(f->dram), 128u);
  f->clock.Advance(absl::Seconds(10));
  NamespaceSpec big = TestSpec("big");
  big.shape.slice_bytes = 8192;  // slots of 12 KiB: 21 a slab
  const auto other = f->Open(big);
  size_t stored = 0;
  for (uint32_t branch = 1; branch <= 4; ++branch)
    stored += f->Put(session, other.id, Chain(other.fingerprint, branch, 5));
  EXPECT_EQ(stored, 20u);
}

TEST_F(StoreTest, NameOfAnotherSpecIsRefusedNamingTheField) {
  f->Open(TestSpec("a"), "prod");
  absl::Status status;
  f->core->OpenNamespace(TestSpec("b"), "prod", [&](auto result) { status = result.status(); });
  EXPECT_TRUE(absl::IsAlreadyExists(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("model is a there and b here"));
  f->Open(TestSpec("b", "other-tenant"), "prod");
}

TEST_F(StoreTest, RecoveryRestoresNamespacesAndBlocksAndRefusesOldEpochs) {
  Make(Without(false, true));
  const std::string record = f->nvme.saved_metadata().begin()->second;
  const auto hashes = Hashes(1, 4);

  StoreFixture g(Without(false, true));
  g.nvme.AddRecoveredMetadata("ns/" + opened.fingerprint.Hex(), record);
  ASSERT_TRUE(g.nvme.OpenPool(PoolId(0), {.tenant = "default", .slot_bytes = 4096}).ok());
  for (uint32_t i = 0; i < 4; ++i) {
    PageIdentity identity{.shape = opened.spec.shape,
                          .fingerprint = opened.fingerprint,
                          .epoch = i == 3 ? 0u : 1u,
                          .hash = hashes[i]};
    if (i > 0) identity.parent = hashes[i - 1];
    identity.block_index = i;
    identity.page_checksum = ContentOf(hashes[i]);
    g.nvme.AddRecovered(PoolId(0), identity);
  }
  bool finished = false;
  g.core->Start([&](absl::Status) { finished = true; });
  g.Settle();
  ASSERT_TRUE(finished);
  const auto found = g.core->FindNamespace("default", opened.fingerprint);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(g.core->Match(found->id, hashes).matched_blocks, 3u);
  EXPECT_EQ(g.nvme.recovered_and_refused(), 1u);
  EXPECT_TRUE(g.core->CheckInvariants().ok());
}

TEST_F(StoreTest, OpeningAndClearingWaitForTheNamespacesOnDisk) {
  Make(Without(false, true));
  f->core->Clear("default", opened.fingerprint, [](absl::Status) {});
  f->Settle();
  const auto [key, record] = *f->nvme.saved_metadata().begin();  // of epoch 2

  StoreFixture g(Without(false, true));
  g.nvme.AddRecoveredMetadata(key, record);
  g.core->Start([](absl::Status) {});
  bool is_opened = false;
  g.core->OpenNamespace(opened.spec, "", [&](auto result) { is_opened = result.ok(); });
  g.core->Clear("default", opened.fingerprint, [](absl::Status) {});
  EXPECT_FALSE(is_opened);
  g.Settle();
  EXPECT_TRUE(is_opened);
  EXPECT_EQ(g.core->ListNamespaces()[0].epoch, 3u) << "epochs on disk count";
}

TEST_F(StoreTest, VerifyFindsDamageAndRepairsFromAnotherTier) {
  const auto hashes = Hashes(1, 12);
  f->Put(session, ns, hashes);
  f->Settle();
  f->nvme.Corrupt({.slab = 0, .slot = 2});
  absl::StatusOr<store::VerifyResult> result = absl::InternalError("not called");
  f->core->Verify(TierKind::kNvme, store::VerifyMode::kRepair, [&](auto r) { result = r; });
  f->Settle();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->checked, 12u);
  EXPECT_EQ(result->bad, 1u);
  EXPECT_EQ(result->repaired, 1u);
  f->core->Evict(ns, TierKind::kDram);
  const auto a = Acquire(hashes);
  f->Settle();
  EXPECT_EQ(a->matched_blocks, 12u);
}

TEST_F(StoreTest, EveryCheckOfAPageIsCountedOnce) {
  Make(Without(false, true));
  const auto hashes = Hashes(1, 12);
  f->Put(session, ns, hashes);
  f->Settle();
  const auto row = [&](TierKind kind) {
    for (const store::TierRow& tier : f->core->status().tiers) {
      if (tier.kind == kind) return tier;
    }
    return store::TierRow{};
  };
  EXPECT_EQ(row(TierKind::kDram).counters.verified_pages, 12u);  // as the source of the copies
  EXPECT_EQ(row(TierKind::kNvme).write_times.count(), 12u);
  f->core->Evict(ns, TierKind::kDram);
  f->nvme.Corrupt({.slab = 0, .slot = 2});
  const auto acquired = Acquire(hashes);
  f->Settle();
  const store::TierRow nvme = row(TierKind::kNvme);
  EXPECT_EQ(nvme.counters.verified_pages, 11u);
  EXPECT_EQ(nvme.counters.differing_pages, 1u);
  EXPECT_EQ(nvme.counters.lost_pages, 1u);
  EXPECT_EQ(nvme.load_times.count(), 11u);
}

}  // namespace
}  // namespace kvstore::tests
