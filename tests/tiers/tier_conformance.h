// The conformance suite of Tier: what every tier must do, whatever it is made of. Include it in one
// source file a tier and instantiate it:
//
//   INSTANTIATE_TEST_SUITE_P(Dram, TierConformance, testing::Values(TierFactory{...}),
//   TierFactoryName);
//
// The tier runs on a core thread of its own; tests post to it, as the store does.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "kvstore/base/page_trailer.h"
#include "tests/tiers/sealed_page.h"
#include "tests/tiers/tier_under_test.h"
#include "tiers/tier.h"
#include "transfer/memory/page_codec.h"

namespace kvstore::tiers {

class TierConformance : public testing::TestWithParam<TierFactory> {
 protected:
  static constexpr PageShape kShape{3, 40000};  // 32 slots of 120 KiB or so in the smallest slab
  static constexpr PageShape kOtherShape{2, 10000};  // another slot size
  static constexpr PoolId kPool{1}, kSameTenant{2}, kOtherTenant{3};

  void SetUp() override {
    under_test_ = GetParam().make();
    OnCore([this] {
      absl::StatusOr<std::unique_ptr<Tier>> tier = under_test_->Make(core_, clock_);
      ASSERT_TRUE(tier.ok()) << tier.status();
      tier_ = *std::move(tier);
      ASSERT_TRUE(tier_->OpenPool(kPool, {"tenant-a", kShape.slot_bytes()}).ok());
      ASSERT_TRUE(tier_->OpenPool(kSameTenant, {"tenant-a", kOtherShape.slot_bytes()}).ok());
      ASSERT_TRUE(tier_->OpenPool(kOtherTenant, {"tenant-b", kOtherShape.slot_bytes()}).ok());
    });
    ASSERT_NE(tier_, nullptr);
  }
  void TearDown() override {
    if (tier_ == nullptr) return;
    OnCore([this] {
      const absl::Status invariants = tier_->CheckInvariants();
      EXPECT_TRUE(invariants.ok()) << invariants;
      tier_->Stop();
    });
    OnCore([this] { tier_.reset(); });
  }

  void OnCore(Task task) { core_.RunAndWait(std::move(task)); }

  // Counts how often each operation is reported. Shared with callbacks, which a broken tier may run
  // late.
  struct Reports {
    absl::Mutex mutex;
    std::vector<std::vector<absl::Status>> of ABSL_GUARDED_BY(mutex);  // [operation]
    bool is_submitting ABSL_GUARDED_BY(mutex) = false;
    bool ran_inside_call ABSL_GUARDED_BY(mutex) = false;
    bool AllReported() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
      return std::all_of(of.begin(), of.end(), [](const auto& s) { return !s.empty(); });
    }
  };
  // Gives out `done` callbacks and says what became of them.
  class Operations {
   public:
    explicit Operations(EventLoop& core) : core_(core) {}
    // Core thread. Calls `submit(done)` and notes whether done ran inside.
    void Submit(const std::function<void(Tier::Done)>& submit) {
      size_t index;
      {
        absl::MutexLock lock(&reports_->mutex);
        index = reports_->of.size();
        reports_->of.emplace_back();
        reports_->is_submitting = true;
      }
      submit([reports = reports_, &core = core_, index](absl::Status status) {
        absl::MutexLock lock(&reports->mutex);
        EXPECT_TRUE(core.IsCurrentThread()) << "reported on another thread than the core's";
        reports->ran_inside_call |= reports->is_submitting;
        reports->of[index].push_back(std::move(status));
      });
      absl::MutexLock lock(&reports_->mutex);
      reports_->is_submitting = false;
    }
    // Waits for all; then each must have been reported once. Not on the core thread.
    std::vector<absl::Status> Wait() {
      {
        absl::MutexLock lock(&reports_->mutex);
        EXPECT_TRUE(reports_->mutex.AwaitWithTimeout(
            absl::Condition(reports_.get(), &Reports::AllReported), absl::Seconds(30)))
            << "an operation was never reported";
      }
      core_.RunAndWait([] {});
      return Collect();
    }
    std::vector<absl::Status> Collect() {
      std::vector<absl::Status> result;
      absl::MutexLock lock(&reports_->mutex);
      EXPECT_FALSE(reports_->ran_inside_call) << "done ran inside the call that started it";
      for (const std::vector<absl::Status>& statuses : reports_->of) {
        EXPECT_EQ(statuses.size(), 1u) << "an operation must be reported exactly once";
        result.push_back(statuses.empty() ? absl::InternalError("never reported") : statuses[0]);
      }
      return result;
    }

   private:
    EventLoop& core_;
    const std::shared_ptr<Reports> reports_ = std::make_shared<Reports>();  // shared with callbacks
  };

  absl::Status Write(PageId page, const PageIdentity& identity, ConstRegion src,
                     absl::Time deadline = absl::InfiniteFuture()) {
    Operations operations(core_);
    OnCore([&] {
      operations.Submit(
          [&](Tier::Done done) { tier_->Write(page, identity, src, deadline, std::move(done)); });
    });
    return operations.Wait()[0];
  }
  absl::Status Read(PageId page, const PageIdentity& expect, MutableRegion dst,
                    absl::Time deadline = absl::InfiniteFuture()) {
    Operations operations(core_);
    OnCore([&] {
      operations.Submit(
          [&](Tier::Done done) { tier_->Read(page, expect, dst, deadline, std::move(done)); });
    });
    return operations.Wait()[0];
  }
  PageId Reserve(PoolId pool) {
    absl::StatusOr<PageId> page;
    OnCore([&] { page = tier_->Reserve(pool); });
    EXPECT_TRUE(page.ok()) << page.status();
    return page.value_or(PageId{});
  }
  PageId WriteNew(PoolId pool, const SealedPage& source) {
    const PageId page = Reserve(pool);
    const absl::Status status = Write(page, source.identity(), source.region());
    EXPECT_TRUE(status.ok()) << status;
    return page;
  }
  void ExpectHolds(PageId page, const SealedPage& source) {
    const SealedPage out(source.identity().shape);
    const absl::Status status = Read(page, source.identity(), out.region());
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(out.HasPageOf(source));
  }
  // Reserves until the pool is exhausted.
  std::vector<PageId> Fill(PoolId pool) {
    std::vector<PageId> pages;
    OnCore([&] {
      for (;;) {
        const uint64_t free_before = tier_->FreeSlots(pool);
        absl::StatusOr<PageId> page = tier_->Reserve(pool);
        if (!page.ok()) {
          EXPECT_TRUE(absl::IsResourceExhausted(page.status())) << page.status();
          EXPECT_EQ(free_before, 0u);
          return;
        }
        EXPECT_EQ(tier_->FreeSlots(pool), free_before - 1);
        pages.push_back(*page);
      }
    });
    return pages;
  }
  void ReleaseAll(const std::vector<PageId>& pages) {
    OnCore([&] {
      for (PageId page : pages) tier_->Release(page);
    });
  }

  MonotonicClock clock_;
  EventLoop core_{"core", 1000, clock_};
  std::unique_ptr<TierUnderTest> under_test_;
  std::unique_ptr<Tier> tier_;
};

TEST_P(TierConformance, EveryReservationIsAnotherUseAndNamesItsOwnSlot) {
  std::map<std::pair<uint32_t, uint32_t>, uint64_t> last_generation;
  for (int round = 0; round < 2; ++round) {
    const std::vector<PageId> pages = Fill(kPool);
    ASSERT_GE(pages.size(), 4u);
    std::map<std::pair<uint32_t, uint32_t>, uint64_t> now;
    for (const PageId& page : pages) {
      EXPECT_EQ(page.generation % 2, 1u);
      EXPECT_TRUE(now.emplace(std::pair(page.slab, page.slot), page.generation).second);
      const auto before = last_generation.find({page.slab, page.slot});
      if (before != last_generation.end()) {
        EXPECT_NE(before->second, page.generation);
      }
    }
    EXPECT_EQ(tier_->stats().used_pages, pages.size());
    EXPECT_EQ(tier_->stats().used_bytes, pages.size() * kShape.slot_bytes());
    EXPECT_LE(tier_->stats().used_bytes, tier_->capacity_bytes());
    ReleaseAll(pages);
    EXPECT_EQ(tier_->stats().used_pages, 0u);
    last_generation = std::move(now);
  }
}

TEST_P(TierConformance, BadSlotSizesAreRefused) {
  OnCore([&] {
    for (uint64_t slot_bytes : {uint64_t{0}, uint64_t{4097}, tier_->capacity_bytes() + 4096}) {
      EXPECT_TRUE(absl::IsInvalidArgument(tier_->OpenPool(PoolId{9}, {"tenant-a", slot_bytes})))
          << slot_bytes;
    }
    EXPECT_TRUE(tier_->OpenPool(kPool, {"tenant-a", kShape.slot_bytes()}).ok()) << "idempotent";
  });
}

TEST_P(TierConformance, WhatIsWrittenIsRead) {
  const SealedPage first(1, kShape), second(2, kShape), other(3, kOtherShape);
  const PageId a = WriteNew(kPool, first);
  const PageId b = WriteNew(kPool, second);
  const PageId c = WriteNew(kOtherTenant, other);
  ExpectHolds(b, second);
  ExpectHolds(a, first);
  ExpectHolds(c, other);
  ExpectHolds(a, first);
  OnCore([&] {
    EXPECT_EQ(tier_->stats().in_flight, 0u);
    EXPECT_GE(tier_->stats().write_bytes, 3 * kOtherShape.page_bytes());
    EXPECT_EQ(tier_->stats().checksum_errors, 0u);
  });
}

TEST_P(TierConformance, ASlotReadBackIsAFullySealedSlot) {
  const SealedPage source(1, kShape);
  const PageId page = WriteNew(kPool, source);
  const SealedPage out(kShape);
  ASSERT_TRUE(Read(page, source.identity(), out.region()).ok());
  EXPECT_TRUE(transfer::VerifySlot(out.data(), source.identity()).ok());
}

TEST_P(TierConformance, AnotherIdentityIsDataLossAndNeverOtherBytes) {
  const SealedPage source(1, kShape);
  const PageId page = WriteNew(kPool, source);
  std::vector<PageIdentity> others(3, source.identity());
  others[0].hash.bytes[31] ^= 1;
  others[1].fingerprint.bytes[15] ^= 1;
  others[2].page_checksum ^= 1;
  for (size_t i = 0; i < others.size(); ++i) {
    const SealedPage out(kShape);
    EXPECT_TRUE(absl::IsDataLoss(Read(page, others[i], out.region()))) << "identity " << i;
  }
  OnCore([&] { EXPECT_EQ(tier_->stats().checksum_errors, others.size()); });
  ExpectHolds(page, source);
}

TEST_P(TierConformance, ACorruptSourceIsRefusedAtWrite) {
  const SealedPage good(1, kShape);
  const size_t places[] = {0, kShape.page_bytes() - 1, transfer::SliceChecksumsOffset(kShape) + 8};
  for (size_t at : places) {
    const SealedPage bad(1, kShape);
    bad.data()[at] ^= std::byte{1};
    const PageId page = Reserve(kPool);
    EXPECT_TRUE(absl::IsDataLoss(Write(page, bad.identity(), bad.region()))) << "byte " << at;
    ReleaseAll({page});
  }
  const PageId page = Reserve(kPool);
  PageIdentity other = good.identity();
  other.hash.bytes[0] ^= 1;
  EXPECT_TRUE(absl::IsDataLoss(Write(page, other, good.region())));
}

TEST_P(TierConformance, BytesThatRottedInTheTierAreDataLoss) {
  const SealedPage source(1, kShape), neighbour(2, kShape);
  const PageId page = WriteNew(kPool, source);
  const PageId next = WriteNew(kPool, neighbour);
  bool is_supported = false;
  OnCore([&] { is_supported = under_test_->Corrupt(*tier_, page); });
  if (!is_supported) GTEST_SKIP() << "this tier cannot be corrupted from here";
  const SealedPage out(kShape);
  EXPECT_TRUE(absl::IsDataLoss(Read(page, source.identity(), out.region())));
  OnCore([&] { EXPECT_EQ(tier_->stats().checksum_errors, 1u); });
  ExpectHolds(next, neighbour);
}

TEST_P(TierConformance, PagesThatAreNotInUseCannotBeReadOrWritten) {
  const SealedPage source(1, kShape);
  const PageId page = WriteNew(kPool, source);
  ReleaseAll({page});
  const SealedPage out(kShape);
  EXPECT_FALSE(Read(page, source.identity(), out.region()).ok());
  EXPECT_FALSE(Write(page, source.identity(), source.region()).ok());
  const PageId again = WriteNew(kPool, SealedPage(2, kShape));
  EXPECT_FALSE(Read(page, source.identity(), out.region()).ok()) << "the slot's next use";
  ReleaseAll({again});
}

TEST_P(TierConformance, RegionsOfTheWrongSizeAreRefused) {
  const SealedPage source(1, kShape), small(2, kOtherShape);
  const PageId page = WriteNew(kPool, source);
  EXPECT_TRUE(absl::IsInvalidArgument(Read(page, source.identity(), small.region())));
  EXPECT_TRUE(absl::IsInvalidArgument(Write(page, source.identity(), small.region())));
  ExpectHolds(page, source);
}

TEST_P(TierConformance, APassedDeadlineIsReportedAndChangesNothing) {
  const SealedPage source(1, kShape), other(2, kShape);
  const PageId page = WriteNew(kPool, source);
  const absl::Time passed = clock_.Now() - absl::Milliseconds(1);
  const SealedPage out(kShape);
  EXPECT_TRUE(absl::IsDeadlineExceeded(Read(page, source.identity(), out.region(), passed)));
  const PageId fresh = Reserve(kPool);
  EXPECT_TRUE(absl::IsDeadlineExceeded(Write(fresh, other.identity(), other.region(), passed)));
  ExpectHolds(page, source);
}

TEST_P(TierConformance, OperationsBeyondTheBoundAreRefusedAndAllAreReportedOnce) {
  const SealedPage source(1, kShape);
  const PageId page = WriteNew(kPool, source);
  constexpr size_t kTooMany = 5;
  const size_t count = tier_->inflight_max() + kTooMany;
  std::vector<std::unique_ptr<SealedPage>> outs;
  for (size_t i = 0; i < count; ++i) outs.push_back(std::make_unique<SealedPage>(kShape));
  Operations operations(core_);
  OnCore([&] {
    for (size_t i = 0; i < count; ++i) {
      operations.Submit([&](Tier::Done done) {
        tier_->Read(page, source.identity(), outs[i]->region(), absl::InfiniteFuture(),
                    std::move(done));
      });
      EXPECT_LE(tier_->stats().in_flight, tier_->inflight_max());
    }
  });
  const std::vector<absl::Status> statuses = operations.Wait();
  size_t refused = 0;
  for (size_t i = 0; i < count; ++i) {
    if (statuses[i].ok()) {
      EXPECT_TRUE(outs[i]->HasPageOf(source));
    } else {
      EXPECT_TRUE(absl::IsResourceExhausted(statuses[i])) << statuses[i];
      ++refused;
    }
  }
  EXPECT_EQ(refused, kTooMany);
  ExpectHolds(page, source);
}

TEST_P(TierConformance, StopReportsWhatIsInFlightBeforeItReturnsAndRefusesTheRest) {
  const SealedPage source(1, kShape);
  const PageId page = WriteNew(kPool, source);
  const PageId target = Reserve(kPool);
  const size_t count = std::min<size_t>(tier_->inflight_max(), 16);
  std::vector<std::unique_ptr<SealedPage>> outs;
  for (size_t i = 0; i < count; ++i) outs.push_back(std::make_unique<SealedPage>(kShape));
  Operations operations(core_), late(core_);
  OnCore([&] {
    operations.Submit([&](Tier::Done done) {
      tier_->Write(target, source.identity(), source.region(), absl::InfiniteFuture(),
                   std::move(done));
    });
    for (size_t i = 1; i < count; ++i) {
      operations.Submit([&](Tier::Done done) {
        tier_->Read(page, source.identity(), outs[i]->region(), absl::InfiniteFuture(),
                    std::move(done));
      });
    }
    tier_->Stop();
    const std::vector<absl::Status> statuses = operations.Collect();
    for (size_t i = 0; i < count; ++i) {
      EXPECT_TRUE(statuses[i].ok() || absl::IsUnavailable(statuses[i])) << statuses[i];
      if (i > 0 && statuses[i].ok()) {
        EXPECT_TRUE(outs[i]->HasPageOf(source));
      }
    }
    EXPECT_EQ(tier_->stats().in_flight, 0u);
    EXPECT_TRUE(absl::IsUnavailable(tier_->Reserve(kPool).status()));
    late.Submit([&](Tier::Done done) {
      tier_->Read(page, source.identity(), outs[0]->region(), absl::InfiniteFuture(),
                  std::move(done));
    });
    tier_->Stop();
  });
  EXPECT_FALSE(late.Wait()[0].ok());
  (void)operations.Wait();
}

TEST_P(TierConformance, AnEmptiedSlabServesPoolsOfTheSameAndOfOtherTenants) {
  std::vector<PageId> pages = Fill(kPool);
  for (PoolId taker : {kSameTenant, kOtherTenant}) {
    OnCore([&] { EXPECT_TRUE(absl::IsResourceExhausted(tier_->Reserve(taker).status())); });
    std::vector<PageId> victims;
    std::erase_if(pages, [&, slab = pages[0].slab](const PageId& page) {
      if (page.slab == slab) victims.push_back(page);
      return page.slab == slab;
    });
    ReleaseAll(victims);
    const SealedPage source(static_cast<uint32_t>(taker.value()), kOtherShape);
    const std::vector<PageId> taken = Fill(taker);
    ASSERT_FALSE(taken.empty());
    ASSERT_TRUE(Write(taken[0], source.identity(), source.region()).ok());
    ExpectHolds(taken[0], source);
    // What the slab held before is gone for good.
    const SealedPage out(kShape);
    EXPECT_FALSE(Read(victims[0], source.identity(), out.region()).ok());
  }
  OnCore([&] { EXPECT_TRUE(tier_->CheckInvariants().ok()) << tier_->CheckInvariants(); });
}

TEST_P(TierConformance, AQuarantinedSlotIsNotUsedAgain) {
  const SealedPage source(1, kShape);
  const PageId bad = WriteNew(kPool, source);
  OnCore([&] { tier_->Quarantine(bad); });
  const SealedPage out(kShape);
  EXPECT_FALSE(Read(bad, source.identity(), out.region()).ok());
  const std::vector<PageId> rest = Fill(kPool);
  for (const PageId& page : rest) {
    EXPECT_FALSE(page.slab == bad.slab && page.slot == bad.slot);
  }
  EXPECT_EQ(tier_->stats().quarantined_pages, 1u);
}

// Reserves, writes, reads, releases and quarantines at random; every page must hold what was
// written to it last.
TEST_P(TierConformance, RandomOperationsKeepEveryPageAndAllInvariants) {
  std::mt19937 random(20);
  struct Live {
    PageId page;
    PoolId pool;
    std::unique_ptr<SealedPage> source;
  };
  std::vector<Live> live;
  uint32_t number = 100;
  int quarantined = 0;
  for (int step = 0; step < 300; ++step) {
    const PoolId pool{1 + static_cast<uint32_t>(random() % 3)};
    const PageShape shape = pool == kPool ? kShape : kOtherShape;
    const uint32_t dice = random() % 100;
    if (dice < 50 || live.empty()) {
      absl::StatusOr<PageId> page;
      OnCore([&] { page = tier_->Reserve(pool); });
      if (!page.ok()) {
        ASSERT_TRUE(absl::IsResourceExhausted(page.status())) << page.status();
        continue;
      }
      live.push_back({*page, pool, std::make_unique<SealedPage>(number++, shape)});
      const absl::Status status =
          Write(*page, live.back().source->identity(), live.back().source->region());
      ASSERT_TRUE(status.ok()) << status;
    } else {
      std::swap(live[random() % live.size()], live.back());
      ExpectHolds(live.back().page, *live.back().source);
      if (dice < 80) continue;
      OnCore([&] {
        if (dice >= 98 && quarantined < 2) {
          tier_->Quarantine(live.back().page);
          ++quarantined;
        } else {
          tier_->Release(live.back().page);
        }
      });
      live.pop_back();
    }
    OnCore([&] {
      ASSERT_EQ(tier_->stats().used_pages, live.size());
      ASSERT_TRUE(tier_->CheckInvariants().ok()) << tier_->CheckInvariants();
    });
    ASSERT_FALSE(HasFailure()) << "step " << step;
  }
  for (const Live& page : live) ExpectHolds(page.page, *page.source);
}

}  // namespace kvstore::tiers
