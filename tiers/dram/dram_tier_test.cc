#include "tiers/dram/dram_tier.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvstore::tiers {
namespace {

using testing::HasSubstr;

constexpr uint64_t kSlab = uint64_t{1} << 20;
constexpr PoolId kPoolA{1}, kPoolA2{2}, kPoolB{3};

class DramTierTest : public testing::Test {
 protected:
  std::unique_ptr<DramTier> MakeTier(uint32_t num_slabs, Prepare prepare = Prepare::kWhenUsed) {
    absl::StatusOr<std::unique_ptr<DramTier>> tier = DramTier::Create(
        {.bytes = num_slabs * kSlab, .slab_bytes = kSlab, .prepare = prepare}, core_, clock_);
    EXPECT_TRUE(tier.ok()) << tier.status();
    EXPECT_TRUE((*tier)->OpenPool(kPoolA, {"tenant-a", kSlab / 2}).ok());
    EXPECT_TRUE((*tier)->OpenPool(kPoolA2, {"tenant-a", kSlab}).ok());
    EXPECT_TRUE((*tier)->OpenPool(kPoolB, {"tenant-b", kSlab}).ok());
    return *std::move(tier);
  }
  MonotonicClock clock_;
  ManualExecutor core_{clock_};
};

uint64_t AllocatedBytes(int fd) {
  struct stat status = {};
  EXPECT_EQ(fstat(fd, &status), 0);
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

uint64_t GenerationSeenBy(const SlabExport& exported, uint64_t offset) {
  const size_t bytes = exported.slab_bytes / 4096 * 8;
  void* table = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, exported.generations.get(), 0);
  EXPECT_NE(table, MAP_FAILED);
  const uint64_t generation = std::atomic_ref(static_cast<uint64_t*>(table)[offset / 4096]).load();
  munmap(table, bytes);
  return generation;
}

TEST(ChooseSlabBytes, GivesManySlabsButLargeOnes) {
  EXPECT_EQ(ChooseSlabBytes(0), uint64_t{2} << 20);
  EXPECT_EQ(ChooseSlabBytes(uint64_t{64} << 20), uint64_t{8} << 20);
  EXPECT_EQ(ChooseSlabBytes(uint64_t{1} << 40), uint64_t{256} << 20);
}

TEST_F(DramTierTest, BadOptionsAreRefusedByName) {
  const auto message = [&](const DramTier::Options& options) {
    return std::string(DramTier::Create(options, core_, clock_).status().message());
  };
  EXPECT_THAT(message({.bytes = kSlab, .slab_bytes = 100}), HasSubstr("slab_bytes is 100"));
  EXPECT_THAT(message({.bytes = kSlab - 1, .slab_bytes = kSlab}), HasSubstr("bytes is 1048575"));
  EXPECT_THAT(message({.bytes = kSlab, .slab_bytes = kSlab, .num_mover_threads = 0}),
              HasSubstr("num_mover_threads"));
  EXPECT_THAT(message({.bytes = kSlab, .slab_bytes = kSlab, .inflight_max = 0}),
              HasSubstr("inflight_max"));
}

TEST_F(DramTierTest, ReadersSeeTheGenerationChangeAtReserveAndAtRelease) {
  std::unique_ptr<DramTier> tier = MakeTier(1);
  const PageId first = *tier->Reserve(kPoolA);
  const PageId second = *tier->Reserve(kPoolA);
  const absl::StatusOr<SlabExport> exported =
      tier->Export(first.slab, "tenant-a", MemoryAccess::kReadOnly);
  ASSERT_TRUE(exported.ok()) << exported.status();
  const auto offset = [](PageId page) { return page.slot * (kSlab / 2); };
  EXPECT_EQ(GenerationSeenBy(*exported, offset(first)), first.generation);
  EXPECT_EQ(GenerationSeenBy(*exported, offset(second)), second.generation);
  tier->Release(second);
  EXPECT_EQ(GenerationSeenBy(*exported, offset(second)), second.generation + 1);
  const PageId again = *tier->Reserve(kPoolA);
  EXPECT_EQ(again.slot, second.slot);
  EXPECT_EQ(GenerationSeenBy(*exported, offset(again)), again.generation);
  EXPECT_GT(again.generation, second.generation);
  tier->Quarantine(again);
  EXPECT_EQ(GenerationSeenBy(*exported, offset(again)), again.generation + 1);
  EXPECT_EQ(GenerationSeenBy(*exported, offset(first)), first.generation);
}

TEST_F(DramTierTest, SameTenantRecutKeepsTheSlabAndItsMemory) {
  std::unique_ptr<DramTier> tier = MakeTier(1);
  const PageId small = *tier->Reserve(kPoolA);
  const std::byte* address = tier->Address(small)->data;
  tier->Release(small);
  const PageId large = *tier->Reserve(kPoolA2);
  EXPECT_EQ(large.slab, small.slab);
  EXPECT_EQ(tier->Address(large)->data, address);
  EXPECT_EQ(tier->Address(small), std::nullopt);
  EXPECT_TRUE(tier->CheckInvariants().ok()) << tier->CheckInvariants();
}

TEST_F(DramTierTest, AnotherTenantGetsANewSlabIdAndZeroedMemoryAndTheOldMemoryIsFreed) {
  std::unique_ptr<DramTier> tier = MakeTier(1);
  const PageId old_page = *tier->Reserve(kPoolA);
  const absl::StatusOr<SlabExport> old_slab =
      tier->Export(old_page.slab, "tenant-a", MemoryAccess::kReadWrite);
  ASSERT_TRUE(old_slab.ok());
  std::memset(tier->Address(old_page)->data, 0x5A, kSlab / 2);
  tier->Release(old_page);
  const PageId new_page = *tier->Reserve(kPoolB);
  EXPECT_NE(new_page.slab, old_page.slab);
  const MutableRegion memory = *tier->Address(new_page);
  for (size_t i = 0; i < memory.bytes; ++i) ASSERT_EQ(memory.data[i], std::byte{0});
  EXPECT_TRUE(
      absl::IsNotFound(tier->Export(old_page.slab, "tenant-a", MemoryAccess::kReadOnly).status()));
  tier->WaitUntilPrepared();
  EXPECT_EQ(AllocatedBytes(old_slab->slab.get()), 0u) << "an old descriptor must not hold memory";
  EXPECT_EQ(GenerationSeenBy(*old_slab, 0), old_page.generation + 1);
  EXPECT_TRUE(tier->CheckInvariants().ok()) << tier->CheckInvariants();
}

TEST_F(DramTierTest, ExportsOnlyToTheTenantAndTellsNothingElse) {
  std::unique_ptr<DramTier> tier = MakeTier(2);
  const PageId page = *tier->Reserve(kPoolA);
  EXPECT_TRUE(tier->Export(page.slab, "tenant-a", MemoryAccess::kReadWrite).ok());
  std::vector<absl::Status> refusals = {
      tier->Export(page.slab, "tenant-b", MemoryAccess::kReadOnly).status(),
      tier->Export(page.slab, "", MemoryAccess::kReadOnly).status(),
  };
  for (const absl::Status& status : refusals) {
    EXPECT_TRUE(absl::IsNotFound(status)) << status;
    EXPECT_EQ(status.message(), refusals[0].message());
  }
  for (uint32_t id = 0; id < 5; ++id) {
    if (id == page.slab) continue;
    EXPECT_TRUE(absl::IsNotFound(tier->Export(id, "tenant-a", MemoryAccess::kReadOnly).status()));
  }
}

TEST_F(DramTierTest, PrefersSlabsOfItsTenantToReplacingMemory) {
  std::unique_ptr<DramTier> tier = MakeTier(3);
  const PageId a = *tier->Reserve(kPoolA2);
  const PageId b = *tier->Reserve(kPoolB);
  tier->Release(a);
  tier->Release(b);
  EXPECT_EQ(tier->Reserve(kPoolA2)->slab, a.slab);
  EXPECT_EQ(tier->Reserve(kPoolB)->slab, b.slab);
}

TEST_F(DramTierTest, AllMemoryIsFaultedInAheadWhenAskedFor) {
  std::unique_ptr<DramTier> tier = MakeTier(2, Prepare::kAtStart);
  tier->WaitUntilPrepared();
  for (int i = 0; i < 2; ++i) {
    const PageId page = *tier->Reserve(kPoolA2);
    const absl::StatusOr<SlabExport> exported =
        tier->Export(page.slab, "tenant-a", MemoryAccess::kReadOnly);
    EXPECT_EQ(AllocatedBytes(exported->slab.get()), kSlab);
  }
  EXPECT_EQ(tier->degraded(), "");
}

TEST_F(DramTierTest, OtherwiseEachSlabIsFaultedInOnceItIsUsedAndOnceItIsReplaced) {
  std::unique_ptr<DramTier> tier = MakeTier(1, Prepare::kWhenUsed);
  for (const auto& [pool, tenant] :
       {std::pair(kPoolA2, "tenant-a"), std::pair(kPoolB, "tenant-b")}) {
    const PageId page = *tier->Reserve(pool);
    tier->WaitUntilPrepared();
    const absl::StatusOr<SlabExport> exported =
        tier->Export(page.slab, tenant, MemoryAccess::kReadOnly);
    EXPECT_EQ(AllocatedBytes(exported->slab.get()), kSlab) << tenant;
    tier->Release(page);
  }
}

// In a child process: gives up what overrides RLIMIT_MEMLOCK and tries. Exits with 0 when all is as
// it must be.
void LockWithoutTheRight() {
  const rlimit none = {0, 0};
  if (setrlimit(RLIMIT_MEMLOCK, &none) != 0) _exit(1);
  if (geteuid() == 0 && setuid(65534) != 0) _exit(2);
  MonotonicClock clock;
  ManualExecutor core(clock);
  absl::StatusOr<std::unique_ptr<DramTier>> tier = DramTier::Create(
      {.bytes = kSlab, .slab_bytes = kSlab, .locking = HostSlabMemory::Locking::kLock}, core,
      clock);
  if (!tier.ok()) _exit(3);
  (*tier)->WaitUntilPrepared();
  if ((*tier)->degraded().find("RLIMIT_MEMLOCK") == std::string::npos) _exit(4);
  if (!(*tier)->OpenPool(kPoolA, {"tenant-a", kSlab}).ok()) _exit(5);
  if (!(*tier)->Reserve(kPoolA).ok()) _exit(6);
  _exit(0);
}

TEST(DramTierDeathTest, RefusedLockingIsANamedDegradedMode) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "AddressSanitizer replaces mlock by one that always succeeds";
#endif
  EXPECT_EXIT(LockWithoutTheRight(), testing::ExitedWithCode(0), "");
}

TEST_F(DramTierTest, PoolsKeepTheirTenant) {
  std::unique_ptr<DramTier> tier = MakeTier(1);
  EXPECT_TRUE(tier->OpenPool(kPoolA, {"tenant-a", kSlab / 2}).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(tier->OpenPool(kPoolA, {"tenant-b", kSlab / 2})));
}

}  // namespace
}  // namespace kvstore::tiers
