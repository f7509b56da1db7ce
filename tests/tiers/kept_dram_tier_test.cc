// A DRAM tier whose memory somebody keeps: what the next process finds, and what it must not.
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>

#include "gtest/gtest.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "tests/tiers/keeper_of_test.h"
#include "tests/tiers/sealed_page.h"
#include "tiers/dram/dram_tier.h"

namespace kvstore::tiers {
namespace {

constexpr uint64_t kSlab = uint64_t{1} << 20;
constexpr PageShape kShape{3, 40000};
constexpr PoolId kPool{1}, kOtherTenant{2};

class KeptDramTierTest : public testing::Test {
 protected:
  void SetUp() override { Start(); }
  void TearDown() override {
    if (tier_ != nullptr) Die();
  }

  void Start() {
    keeper_.BeginProcess();
    executor_ = std::make_unique<ManualExecutor>(clock_);
    absl::StatusOr<std::unique_ptr<DramTier>> tier = DramTier::Create(options_, *executor_, clock_);
    ASSERT_TRUE(tier.ok()) << tier.status();
    tier_ = *std::move(tier);
    ASSERT_TRUE(tier_->OpenPool(kPool, {"tenant-a", kShape.slot_bytes()}).ok());
    ASSERT_TRUE(tier_->OpenPool(kOtherTenant, {"tenant-b", kShape.slot_bytes()}).ok());
  }
  // Nothing is released, as in a process that is killed.
  void Die() {
    EXPECT_EQ(tier_->CheckInvariants(), absl::OkStatus());
    tier_->Stop();
    tier_.reset();
    executor_.reset();
  }
  void Restart() {
    Die();
    Start();
  }
  PageId Publish(const SealedPage& page, PoolId pool = kPool) {
    const PageId id = *tier_->Reserve(pool);
    std::memcpy(tier_->Address(id)->data, page.data(), kShape.slot_bytes());
    tier_->NotePublished(id, page.identity());
    return id;
  }
  // Pages that recovery tells, by block index; those of `refused` are not kept.
  std::map<uint32_t, RecoveredPage> Recover(PoolId pool = kPool, uint32_t refused = UINT32_MAX) {
    std::map<uint32_t, RecoveredPage> found;
    bool is_finished = false;
    uint32_t last = 0;
    tier_->durable()->Recover(
        {.on_metadata = nullptr,
         .on_pages =
             [&](const std::vector<RecoveredPage>& pages) {
               std::vector<bool> kept;
               for (const RecoveredPage& page : pages) {
                 EXPECT_GE(page.identity.block_index, last) << "a child before its parent";
                 last = page.identity.block_index;
                 kept.push_back(last != refused);
                 if (kept.back()) found[last] = page;
               }
               return kept;
             },
         .pool_of = [pool](const PageIdentity&) { return pool; },
         .on_finished = [&](absl::Status status) { is_finished = status.ok(); }});
    executor_->RunUntilIdle();
    EXPECT_TRUE(is_finished);
    EXPECT_EQ(tier_->CheckInvariants(), absl::OkStatus());
    return found;
  }
  void ExpectHolds(PageId id, const SealedPage& page) {
    ASSERT_TRUE(tier_->Address(id).has_value());
    const SealedPage out(kShape);
    EXPECT_EQ(transfer::CopySlot(out.data(), tier_->Address(id)->data, page.identity()),
              absl::OkStatus());
    EXPECT_TRUE(out.HasPageOf(page));
  }

  ManualClock clock_;
  KeeperOfTest keeper_;
  DramTier::Options options_{.bytes = 3 * kSlab,
                             .slab_bytes = kSlab,
                             .prepare = Prepare::kWhenUsed,
                             .keeper = &keeper_,
                             .hold_time = absl::Seconds(30)};
  std::unique_ptr<ManualExecutor> executor_;
  std::unique_ptr<DramTier> tier_;
};

TEST_F(KeptDramTierTest, PublishedPagesComeBackWithTheirBytes) {
  constexpr uint32_t kPages = 15;  // two slabs
  for (uint32_t i = kPages; i-- > 0;) Publish(SealedPage(i, kShape));
  for (int round = 0; round < 3; ++round) {
    Restart();
    EXPECT_EQ(tier_->kept_start()->found.pages, kPages);
    const auto found = Recover();
    ASSERT_EQ(found.size(), kPages);
    EXPECT_EQ(tier_->stats().used_pages, kPages);
    for (const auto& [number, page] : found) ExpectHolds(page.page, SealedPage(number, kShape));
  }
}

TEST_F(KeptDramTierTest, ReleasedRefusedAndQuarantinedPagesDoNotComeBack) {
  const PageId released = Publish(SealedPage(0, kShape));
  Publish(SealedPage(1, kShape));
  const PageId bad = Publish(SealedPage(2, kShape));
  Publish(SealedPage(3, kShape));
  tier_->Release(released);
  tier_->Quarantine(bad);
  Restart();
  EXPECT_EQ(Recover(kPool, 3).size(), 1u);
  Restart();
  const auto found = Recover();
  ASSERT_EQ(found.size(), 1u);
  EXPECT_TRUE(found.contains(1));
}

TEST_F(KeptDramTierTest, NothingOverwritesAPageBeforeItIsTold) {
  const SealedPage page(0, kShape);
  Publish(page);
  Restart();
  std::vector<PageId> others;  // clients come first
  for (;;) {
    const auto id = tier_->Reserve(kPool);
    if (!id.ok()) break;
    std::memset(tier_->Address(*id)->data, 0x77, kShape.slot_bytes());
    others.push_back(*id);
  }
  const auto found = Recover();
  ASSERT_EQ(found.size(), 1u);
  ExpectHolds(found.at(0).page, page);
}

TEST_F(KeptDramTierTest, WhatWasBeingWrittenIsNoPageAndStaysOutOfUseForALease) {
  Publish(SealedPage(0, kShape));
  const PageId writing = *tier_->Reserve(kPool);
  Restart();
  const uint64_t all = 3 * (kSlab / kShape.slot_bytes());
  EXPECT_EQ(Recover().size(), 1u);
  EXPECT_EQ(tier_->FreeSlots(kPool), all - 2);
  EXPECT_EQ(tier_->stats().used_pages, 1u);
  std::vector<PageId> pages;
  while (tier_->FreeSlots(kPool) > 0) {
    pages.push_back(*tier_->Reserve(kPool));
    EXPECT_FALSE(pages.back().slab == writing.slab && pages.back().slot == writing.slot);
  }
  for (const PageId& page : pages) tier_->Release(page);
  clock_.Advance(absl::Seconds(29));
  executor_->RunUntilIdle();
  EXPECT_EQ(tier_->FreeSlots(kPool), all - 2);
  clock_.Advance(absl::Seconds(2));
  executor_->RunUntilIdle();
  EXPECT_EQ(tier_->FreeSlots(kPool), all - 1);
}

TEST_F(KeptDramTierTest, WhoReadsForTheDeadProcessSeesThatTheUseIsOver) {
  const PageId page = Publish(SealedPage(0, kShape));
  const auto exported = tier_->Export(page.slab, "tenant-a", MemoryAccess::kReadOnly);
  ASSERT_TRUE(exported.ok());
  const auto* const generations = static_cast<const uint64_t*>(
      mmap(nullptr, 4096, PROT_READ, MAP_SHARED, exported->generations.get(), 0));
  ASSERT_NE(generations, MAP_FAILED);
  EXPECT_EQ(generations[page.slot * kShape.slot_bytes() / 4096], page.generation);
  Restart();
  EXPECT_NE(generations[page.slot * kShape.slot_bytes() / 4096], page.generation)
      << "before anything is served";
  const auto found = Recover();
  ASSERT_EQ(found.size(), 1u);
  EXPECT_GT(found.at(0).page.generation, page.generation);
  EXPECT_EQ(generations[page.slot * kShape.slot_bytes() / 4096], found.at(0).page.generation);
  munmap(const_cast<uint64_t*>(generations), 4096);
}

TEST_F(KeptDramTierTest, ReadersCannotWriteKeptGenerations) {
  const PageId page = Publish(SealedPage(0, kShape));
  const auto exported = tier_->Export(page.slab, "tenant-a", MemoryAccess::kReadWrite);
  ASSERT_TRUE(exported.ok());
  EXPECT_EQ(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, exported->generations.get(), 0),
            MAP_FAILED);
  struct stat status {};
  ASSERT_EQ(fstat(exported->generations.get(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0400u) << "another uid cannot open it anew for writing";
}

TEST_F(KeptDramTierTest, ASlabStaysItsTenantsAndIsNewMemoryForAnother) {
  const SealedPage page(0, kShape);
  std::vector<PageId> pages;
  while (tier_->FreeSlots(kPool) > 0) pages.push_back(Publish(page));
  Restart();
  EXPECT_TRUE(Recover(kOtherTenant).empty()) << "pages in another tenant's memory";
  EXPECT_FALSE(tier_->Export(pages[0].slab, "tenant-b", MemoryAccess::kReadOnly).ok());
  EXPECT_EQ(tier_->stats().used_pages, 0u);
  const PageId other = *tier_->Reserve(kOtherTenant);
  EXPECT_FALSE(keeper_.Has(absl::StrCat("kv.s", other.slab)) &&
               std::ranges::any_of(pages, [&](const PageId& p) { return p.slab == other.slab; }));
  const std::byte* const memory = tier_->Address(other)->data;
  EXPECT_TRUE(std::all_of(memory, memory + kShape.slot_bytes(),
                          [](std::byte b) { return b == std::byte{0}; }));
}

TEST_F(KeptDramTierTest, MemoryThatChangedTenantsIsLetGoAndTheNewOneIsKept) {
  std::vector<PageId> pages;
  while (tier_->FreeSlots(kPool) > 0) pages.push_back(Publish(SealedPage(0, kShape)));
  for (const PageId& page : pages) tier_->Release(page);
  const SealedPage theirs(5, kShape);
  const PageId other = Publish(theirs, kOtherTenant);
  tier_->WaitUntilPrepared();
  EXPECT_TRUE(keeper_.Has(absl::StrCat("kv.s", other.slab)));
  EXPECT_EQ(keeper_.size(), 7u) << "three slabs and the ledger";
  Restart();
  const auto found = Recover(kOtherTenant);
  ASSERT_EQ(found.size(), 1u);
  ExpectHolds(found.at(5).page, theirs);
}

TEST_F(KeptDramTierTest, AnotherSizeVersionOrBootStartsColdAndLetsTheMemoryGo) {
  const auto expect_cold = [&](const std::string& why) {
    Restart();
    EXPECT_NE(tier_->kept_start()->why_cold.find(why), std::string::npos)
        << tier_->kept_start()->why_cold;
    EXPECT_EQ(tier_->kept_start()->slabs, 0u);
    EXPECT_EQ(keeper_.size(), 2 * options_.bytes / kSlab + 1);
    EXPECT_TRUE(tier_->durable()->metadata().empty());
    Publish(SealedPage(0, kShape));
    Restart();
    EXPECT_EQ(Recover().size(), 1u) << "from here on it is warm again";
  };
  Publish(SealedPage(0, kShape));
  options_.bytes = 4 * kSlab;
  expect_cold("3 slabs of 1048576 bytes, and tier.dram.bytes asks for 4");
  options_.bytes = 2 * kSlab;
  expect_cold("4 slabs of 1048576 bytes, and tier.dram.bytes asks for 2");
  options_.boot[7] = 1;
  expect_cold("another boot");
  auto* const ledger = static_cast<std::byte*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, keeper_.fd("kv.ledger"), 0));
  ASSERT_NE(ledger, MAP_FAILED);
  ledger[8] = std::byte{9};
  munmap(ledger, 4096);
  expect_cold("version 9");
  keeper_.Lose("kv.ledger");
  expect_cold("");
}

TEST_F(KeptDramTierTest, SlabsThatAreMissingOrAnotherBeginAnew) {
  const SealedPage page(0, kShape);
  const PageId id = Publish(page);
  const uint32_t other = id.slab == 1 ? 2 : 1;
  keeper_.Swap(absl::StrCat("kv.s", id.slab), absl::StrCat("kv.s", other));
  Restart();
  EXPECT_EQ(tier_->kept_start()->slabs, 1u);
  EXPECT_TRUE(Recover().empty());
  EXPECT_FALSE(keeper_.Has(absl::StrCat("kv.s", id.slab)));
  const PageId again = Publish(page);
  keeper_.Lose(absl::StrCat("kv.g", again.slab));
  Restart();
  EXPECT_TRUE(Recover().empty());
  EXPECT_EQ(keeper_.size(), 7u);
}

TEST_F(KeptDramTierTest, MetadataIsKeptAndReplaced) {
  const auto save = [&](const std::string& key, const std::string& value) {
    absl::Status saved = absl::UnknownError("");
    tier_->durable()->SaveMetadata(key, value, [&](absl::Status status) { saved = status; });
    executor_->RunUntilIdle();
    return saved;
  };
  EXPECT_TRUE(save("ns/a", "1").ok());
  EXPECT_TRUE(save("ns/b", "2").ok());
  EXPECT_TRUE(save("ns/a", "3").ok());
  EXPECT_TRUE(save("ns/b", "").ok());
  EXPECT_TRUE(absl::IsInvalidArgument(save("x", std::string((64 << 10) + 1, 'x'))));
  Restart();
  EXPECT_EQ(tier_->durable()->metadata(),
            (std::vector<std::pair<std::string, std::string>>{{"ns/a", "3"}}));
}

TEST_F(KeptDramTierTest, AKeeperMayBeWithoutTheMemoryThatTheLedgerNames) {
  Publish(SealedPage(0, kShape));
  for (uint32_t slab = 1; slab <= 3; ++slab) {
    keeper_.Lose(absl::StrCat("kv.s", slab));
    keeper_.Lose(absl::StrCat("kv.g", slab));
  }
  Restart();
  EXPECT_EQ(tier_->kept_start()->slabs, 0u);
  EXPECT_TRUE(Recover().empty());
  const PageId page = Publish(SealedPage(1, kShape));
  EXPECT_GT(page.slab, 3u) << "ids of slabs do not come back";
  Restart();
  EXPECT_EQ(Recover().size(), 1u);
}

}  // namespace
}  // namespace kvstore::tiers
