#include "tiers/slot_allocator.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <tuple>

#include "gtest/gtest.h"

namespace kvstore::tiers {
namespace {

constexpr PoolId kPoolA{1}, kPoolB{2}, kPoolC{3};
constexpr uint64_t kSlab = 64 * 4096;

SlotAllocator::Options SmallOptions(uint32_t num_slabs) {
  SlotAllocator::Options options;
  options.num_slabs = num_slabs;
  options.slab_bytes = kSlab;
  return options;
}

PageId MustReserve(SlotAllocator& slots, PoolId pool) {
  absl::StatusOr<PageId> page = slots.Reserve(pool);
  EXPECT_TRUE(page.ok()) << page.status();
  return page.ok() ? *page : PageId{};
}

TEST(SlotAllocator, RefusesSlotSizesThatDoNotFit) {
  SlotAllocator slots(SmallOptions(1));
  for (uint64_t bytes : {uint64_t{0}, uint64_t{1}, uint64_t{4095}, kSlab + 4096}) {
    EXPECT_EQ(slots.OpenPool(kPoolA, bytes).code(), absl::StatusCode::kInvalidArgument) << bytes;
  }
  EXPECT_TRUE(slots.OpenPool(kPoolA, kSlab).ok());
  EXPECT_TRUE(slots.OpenPool(kPoolA, kSlab).ok());
  EXPECT_EQ(slots.OpenPool(kPoolA, 4096).code(), absl::StatusCode::kInvalidArgument);
}

TEST(SlotAllocator, HandsOutEverySlotOnceThenIsExhausted) {
  SlotAllocator slots(SmallOptions(2));
  ASSERT_TRUE(slots.OpenPool(kPoolA, 3 * 4096).ok());
  ASSERT_EQ(slots.FreeSlots(kPoolA), 42u);
  std::set<std::pair<uint32_t, uint32_t>> places;
  for (int i = 0; i < 42; ++i) {
    const PageId page = MustReserve(slots, kPoolA);
    EXPECT_TRUE(places.insert({page.slab, page.slot}).second);
    EXPECT_LE(slots.OffsetInSlab(page) + 3 * 4096, kSlab);
    EXPECT_TRUE(slots.IsCurrent(page));
  }
  EXPECT_EQ(slots.Reserve(kPoolA).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(slots.FreeSlots(kPoolA), 0u);
  EXPECT_EQ(slots.used_bytes(), 42u * 3 * 4096);
}

TEST(SlotAllocator, UnknownPoolIsNotFound) {
  SlotAllocator slots(SmallOptions(1));
  EXPECT_EQ(slots.Reserve(kPoolA).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(slots.ReserveAt(kPoolA, 0, 0).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(slots.FreeSlots(kPoolA), 0u);
}

TEST(SlotAllocator, GenerationsDifferForEveryUseAndAreOddWhileUsed) {
  SlotAllocator slots(SmallOptions(1));
  ASSERT_TRUE(slots.OpenPool(kPoolA, kSlab).ok());
  ASSERT_TRUE(slots.OpenPool(kPoolB, 4096).ok());
  std::set<uint64_t> seen;
  for (int i = 0; i < 10; ++i) {
    const PageId page = MustReserve(slots, i % 3 == 0 ? kPoolB : kPoolA);
    EXPECT_EQ(page.slot, 0u);
    EXPECT_EQ(page.generation % 2, 1u);
    EXPECT_TRUE(seen.insert(page.generation).second);
    slots.Release(page);
    EXPECT_FALSE(slots.IsCurrent(page));
  }
}

TEST(SlotAllocator, GenerationBaseIsRespected) {
  SlotAllocator::Options options = SmallOptions(1);
  options.generation_base = 1000;
  SlotAllocator slots(options);
  ASSERT_TRUE(slots.OpenPool(kPoolA, 4096).ok());
  EXPECT_EQ(MustReserve(slots, kPoolA).generation, 1001u);
}

TEST(SlotAllocator, EmptySlabServesAnotherPoolAndOldPagesAreNotCurrent) {
  SlotAllocator slots(SmallOptions(1));
  ASSERT_TRUE(slots.OpenPool(kPoolA, 4096).ok());
  ASSERT_TRUE(slots.OpenPool(kPoolB, 2 * 4096).ok());
  const PageId a0 = MustReserve(slots, kPoolA);
  const PageId a1 = MustReserve(slots, kPoolA);
  EXPECT_EQ(slots.Reserve(kPoolB).status().code(), absl::StatusCode::kResourceExhausted);
  slots.Release(a0);
  slots.Release(a1);
  EXPECT_EQ(slots.SlotBytes(0), 0u);
  const PageId b = MustReserve(slots, kPoolB);
  EXPECT_EQ(slots.SlotBytes(0), 2u * 4096);
  EXPECT_TRUE(slots.IsCurrent(b));
  EXPECT_FALSE(slots.IsCurrent(a0));
  EXPECT_FALSE(slots.IsCurrent(a1));
}

TEST(SlotAllocator, QuarantinedSlotIsNeverHandedOutAgainAndKeepsItsSlab) {
  SlotAllocator slots(SmallOptions(1));
  ASSERT_TRUE(slots.OpenPool(kPoolA, kSlab / 2).ok());
  ASSERT_TRUE(slots.OpenPool(kPoolB, kSlab).ok());
  const PageId bad = MustReserve(slots, kPoolA);
  slots.Quarantine(bad);
  EXPECT_FALSE(slots.IsCurrent(bad));
  EXPECT_EQ(slots.quarantined_pages(), 1u);
  EXPECT_EQ(slots.FreeSlots(kPoolA), 1u);
  const PageId other = MustReserve(slots, kPoolA);
  EXPECT_NE(other.slot, bad.slot);
  EXPECT_EQ(slots.Reserve(kPoolA).status().code(), absl::StatusCode::kResourceExhausted);
  slots.Release(other);
  EXPECT_EQ(slots.Reserve(kPoolB).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(slots.CheckInvariants().ok());
}

TEST(SlotAllocator, ReserveAtTakesExactlyThatSlot) {
  SlotAllocator slots(SmallOptions(2));
  ASSERT_TRUE(slots.OpenPool(kPoolA, kSlab / 8).ok());
  ASSERT_TRUE(slots.OpenPool(kPoolB, kSlab).ok());
  const absl::StatusOr<PageId> page = slots.ReserveAt(kPoolA, 1, 5);
  ASSERT_TRUE(page.ok());
  EXPECT_EQ(std::tuple(page->slab, page->slot), std::tuple(1u, 5u));
  EXPECT_EQ(slots.ReserveAt(kPoolA, 1, 5).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(slots.ReserveAt(kPoolB, 1, 0).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(slots.ReserveAt(kPoolA, 1, 8).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(slots.ReserveAt(kPoolA, 2, 0).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(slots.ReserveAt(kPoolA, 1, 2).ok());
  for (int i = 0; i < 14; ++i) {
    const PageId p = MustReserve(slots, kPoolA);
    EXPECT_FALSE(p.slab == 1 && (p.slot == 5 || p.slot == 2));
  }
  EXPECT_EQ(slots.FreeSlots(kPoolA), 0u);
  EXPECT_TRUE(slots.CheckInvariants().ok());
}

TEST(SlotAllocator, FailedAssignmentLeavesTheSlabFree) {
  bool refuse = true;
  SlotAllocator::Options options = SmallOptions(1);
  options.on_assign = [&refuse](uint32_t, PoolId) {
    return refuse ? absl::UnavailableError("no memory yet") : absl::OkStatus();
  };
  SlotAllocator slots(options);
  ASSERT_TRUE(slots.OpenPool(kPoolA, kSlab).ok());
  EXPECT_EQ(slots.Reserve(kPoolA).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(slots.FreeSlots(kPoolA), 1u);
  EXPECT_TRUE(slots.CheckInvariants().ok());
  refuse = false;
  EXPECT_TRUE(slots.Reserve(kPoolA).ok());
}

TEST(SlotAllocator, PrefersItsOwnFormerSlabThenAnUnusedOne) {
  SlotAllocator slots(SmallOptions(3));
  ASSERT_TRUE(slots.OpenPool(kPoolA, kSlab).ok());
  ASSERT_TRUE(slots.OpenPool(kPoolB, kSlab).ok());
  const PageId a = MustReserve(slots, kPoolA);
  const PageId b = MustReserve(slots, kPoolB);
  slots.Release(a);
  slots.Release(b);
  EXPECT_EQ(MustReserve(slots, kPoolA).slab, a.slab);
  const PageId unused = MustReserve(slots, kPoolA);
  EXPECT_NE(unused.slab, b.slab);
  EXPECT_EQ(MustReserve(slots, kPoolA).slab, b.slab);
}

TEST(SlotAllocator, TellsWhenSlabsAreAssignedAndFreed) {
  std::vector<std::string> told;
  SlotAllocator::Options options = SmallOptions(1);
  options.on_assign = [&told](uint32_t slab, PoolId pool) {
    told.push_back("assign " + std::to_string(slab) + " " + std::to_string(pool.value()));
    return absl::OkStatus();
  };
  options.on_free = [&told](uint32_t slab) { told.push_back("free " + std::to_string(slab)); };
  SlotAllocator slots(options);
  ASSERT_TRUE(slots.OpenPool(kPoolB, 4096).ok());
  const PageId first = MustReserve(slots, kPoolB);
  slots.Release(MustReserve(slots, kPoolB));
  slots.Release(first);
  EXPECT_EQ(told, (std::vector<std::string>{"assign 0 2", "free 0"}));
}

TEST(SlotAllocator, AClosedSlabHandsOutNothingUntilItWasFree) {
  SlotAllocator slots({.num_slabs = 2, .slab_bytes = 4 * 4096});
  const PoolId pool(1), other(2);
  ASSERT_TRUE(slots.OpenPool(pool, 4096).ok());
  ASSERT_TRUE(slots.OpenPool(other, 8192).ok());
  std::vector<PageId> pages;
  for (int i = 0; i < 6; ++i) pages.push_back(*slots.Reserve(pool));
  slots.Close(pages[0].slab);
  slots.Release(pages[0]);
  slots.Release(pages[1]);
  EXPECT_EQ(slots.FreeSlots(pool), 2u) << "those of the open slab";
  EXPECT_EQ(slots.Reserve(pool)->slab, pages[5].slab);
  EXPECT_EQ(slots.Reserve(pool)->slab, pages[5].slab);
  EXPECT_TRUE(absl::IsResourceExhausted(slots.Reserve(pool).status()));
  EXPECT_TRUE(slots.CheckInvariants().ok()) << slots.CheckInvariants();

  slots.Reopen(pages[0].slab);
  EXPECT_EQ(slots.FreeSlots(pool), 2u);
  EXPECT_EQ(slots.Reserve(pool)->slab, pages[0].slab);
  slots.Close(pages[0].slab);
  EXPECT_TRUE(slots.CheckInvariants().ok()) << slots.CheckInvariants();
  slots.Reopen(pages[0].slab);
  slots.Reopen(pages[0].slab);
  EXPECT_EQ(slots.FreeSlots(pool), 1u);
}

TEST(SlotAllocator, AClosedSlabThatIsFreeGoesToAnyPool) {
  SlotAllocator slots({.num_slabs = 1, .slab_bytes = 4 * 4096});
  const PoolId pool(1), other(2);
  ASSERT_TRUE(slots.OpenPool(pool, 4096).ok());
  ASSERT_TRUE(slots.OpenPool(other, 8192).ok());
  const PageId first = *slots.Reserve(pool), second = *slots.Reserve(pool);
  slots.Close(first.slab);
  slots.Release(first);
  EXPECT_EQ(slots.FreeSlots(other), 0u);
  slots.Release(second);
  EXPECT_EQ(slots.FreeSlots(other), 2u);
  EXPECT_TRUE(slots.Reserve(other).ok());
  EXPECT_TRUE(slots.CheckInvariants().ok()) << slots.CheckInvariants();
}

TEST(SlotAllocatorDeathTest, ReleasingTwiceAborts) {
  SlotAllocator slots(SmallOptions(1));
  ASSERT_TRUE(slots.OpenPool(kPoolA, 4096).ok());
  const PageId page = MustReserve(slots, kPoolA);
  slots.Release(page);
  EXPECT_DEATH(slots.Release(page), "not in use");
  EXPECT_DEATH(slots.Quarantine(page), "not in use");
}

// Random operations against the simplest model: the set of byte ranges that are in use or
// quarantined.
TEST(SlotAllocator, RandomOperationsKeepInvariantsAndNeverOverlap) {
  constexpr uint32_t kSlabs = 6;
  const std::map<PoolId, uint64_t> slot_bytes = {
      {kPoolA, 4096}, {kPoolB, 5 * 4096}, {kPoolC, 16 * 4096}};
  for (uint32_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    SlotAllocator slots(SmallOptions(kSlabs));
    for (const auto& [pool, bytes] : slot_bytes) ASSERT_TRUE(slots.OpenPool(pool, bytes).ok());
    std::vector<std::pair<PageId, PoolId>> live;
    std::set<std::tuple<uint32_t, uint64_t>> ranges;          // each 4 KiB in use: slab, offset
    std::set<std::tuple<uint32_t, uint64_t, uint64_t>> uses;  // slab, offset, generation ever seen
    const auto for_each_4k = [&](PageId page, uint64_t bytes, auto&& f) {
      const uint64_t start = uint64_t{page.slot} * bytes;
      for (uint64_t o = start; o < start + bytes; o += 4096) f(page.slab, o);
    };
    int quarantines = 0;
    for (int step = 0; step < 20000; ++step) {
      const PoolId pool{1 + static_cast<uint32_t>(random() % 3)};
      const uint64_t bytes = slot_bytes.at(pool);
      const bool fill = (step / 2000) % 2 == 0;
      if (random() % 50 == 0) slots.Close(random() % kSlabs);
      if (random() % 50 == 0) slots.Reopen(random() % kSlabs);
      if (random() % 100 < (fill ? 70u : 30u)) {
        const uint64_t free_before = slots.FreeSlots(pool);
        const absl::StatusOr<PageId> page = slots.Reserve(pool);
        ASSERT_EQ(page.ok(), free_before > 0) << page.status();
        if (!page.ok()) continue;
        live.emplace_back(*page, pool);
        for_each_4k(*page, bytes, [&](uint32_t slab, uint64_t offset) {
          ASSERT_TRUE(ranges.insert({slab, offset}).second) << "two owners";
          ASSERT_TRUE(uses.insert({slab, offset, page->generation}).second) << "generation reused";
        });
      } else if (!live.empty()) {
        std::swap(live[random() % live.size()], live.back());
        const auto [page, owner] = live.back();
        live.pop_back();
        ASSERT_TRUE(slots.IsCurrent(page));
        if (quarantines < 3 && random() % 1000 == 0) {
          slots.Quarantine(page);
          ++quarantines;
          continue;
        }
        slots.Release(page);
        for_each_4k(page, slot_bytes.at(owner), [&](uint32_t slab, uint64_t offset) {
          ranges.erase({slab, offset});
        });
      }
      ASSERT_EQ(slots.used_pages(), live.size());
      if (step % 64 == 0) {
        ASSERT_TRUE(slots.CheckInvariants().ok()) << slots.CheckInvariants();
      }
    }
    for (const auto& [page, pool] : live) slots.Release(page);
    EXPECT_EQ(slots.used_bytes(), 0u);
    EXPECT_TRUE(slots.CheckInvariants().ok()) << slots.CheckInvariants();
  }
}

}  // namespace
}  // namespace kvstore::tiers
