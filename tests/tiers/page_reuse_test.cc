// Slots change their content as fast as they can while readers copy them: what a reader accepts is
// what it asked for.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "kvstore/base/page_trailer.h"
#include "tiers/dram/dram_tier.h"
#include "transfer/memory/page_codec.h"

namespace kvstore::tiers {
namespace {

constexpr uint64_t kSlab = uint64_t{1} << 20;
constexpr PageShape kShape{2, 4096};
constexpr PoolId kTenant{1};
constexpr size_t kReaders = 3;
// Another 9 million with KVSTORE_STRICT=1.
constexpr uint64_t kEvictions = 1'000'000, kEvictionsStrict = 10'000'000;

// The bytes of the page of `number`: every word tells it.
void FillPage(uint64_t number, std::vector<uint64_t>* page) {
  for (size_t i = 0; i < page->size(); ++i) (*page)[i] = number * 0x9E3779B97F4A7C15u + i;
}

PageIdentity IdentityOf(uint64_t number) {
  PageIdentity identity;
  identity.shape = kShape;
  identity.fingerprint.bytes[0] = 7;
  std::memcpy(identity.hash.bytes.data(), &number, sizeof number);
  return identity;
}

// What a lease tells a reader.
struct Leased {
  uint64_t number = 0;
  PageId page;
  uint64_t page_checksum = 0;
};

// The pool has one page: every eviction takes the one that readers are at.
TEST(PageReuse, NoReaderAcceptsBytesOfAnotherPageInMillionsOfEvictions) {
  MonotonicClock clock;
  EventLoop core("core", 100, clock);
  std::unique_ptr<DramTier> tier;
  core.RunAndWait([&] {
    tier = *DramTier::Create({.bytes = kSlab, .slab_bytes = kSlab}, core, clock);
    ASSERT_TRUE(tier->OpenPool(kTenant, {"tenant", kShape.slot_bytes()}).ok());
    // All slots but one stay in use.
    while (tier->FreeSlots(kTenant) > 1) ASSERT_TRUE(tier->Reserve(kTenant).ok());
  });
  std::mutex mutex;
  Leased leased;
  std::atomic<bool> has_ended{false};
  std::atomic<uint64_t> accepted{0}, refused{0}, wrong{0};
  const auto read = [&](const std::byte* slab, const uint64_t* table) {
    std::vector<uint64_t> copy(kShape.page_bytes() / 8), expected(copy.size());
    while (!has_ended) {
      Leased now;
      {
        const std::lock_guard lock(mutex);
        now = leased;
      }
      if (now.number == 0) continue;
      // A reader may be anywhere between being told and its copy.
      if (now.number % 3 == 0) std::this_thread::yield();
      PageIdentity identity = IdentityOf(now.number);
      identity.page_checksum = now.page_checksum;
      const size_t offset = now.page.slot * kShape.slot_bytes();
      const bool is_right =
          transfer::CopyFromSlot(reinterpret_cast<std::byte*>(copy.data()), slab + offset, identity)
              .ok();
      std::atomic_thread_fence(std::memory_order_acquire);
      const std::atomic_ref<const uint64_t> cell(table[offset / 4096]);
      if (!is_right || cell.load(std::memory_order_relaxed) != now.page.generation) {
        ++refused;
        continue;
      }
      ++accepted;
      FillPage(now.number, &expected);
      wrong += copy != expected ? 1 : 0;
    }
  };
  uint64_t evictions = getenv("KVSTORE_STRICT") != nullptr ? kEvictionsStrict : kEvictions;
  std::vector<std::thread> readers;
  std::vector<uint64_t> page(kShape.page_bytes() / 8);
  const std::byte* slab = nullptr;
  const uint64_t* table = nullptr;
  for (uint64_t number = 1; number <= evictions; ++number) {
    FillPage(number, &page);
    Leased next{.number = number, .page = {}, .page_checksum = 0};
    core.RunAndWait([&] {
      if (number > 1) tier->Release(leased.page);
      next.page = *tier->Reserve(kTenant);
      next.page_checksum =
          transfer::CopyIntoSlot(tier->Address(next.page)->data,
                                 reinterpret_cast<std::byte*>(page.data()), IdentityOf(number));
    });
    {
      const std::lock_guard lock(mutex);
      leased = next;
    }
    if (number > 1) continue;
    const absl::StatusOr<SlabExport> exported =
        tier->Export(next.page.slab, "tenant", MemoryAccess::kReadOnly);
    ASSERT_TRUE(exported.ok()) << exported.status();
    slab = static_cast<const std::byte*>(
        mmap(nullptr, kSlab, PROT_READ, MAP_SHARED, exported->slab.get(), 0));
    table = static_cast<const uint64_t*>(
        mmap(nullptr, kSlab / 4096 * 8, PROT_READ, MAP_SHARED, exported->generations.get(), 0));
    for (size_t i = 0; i < kReaders; ++i) readers.emplace_back(read, slab, table);
  }
  has_ended = true;
  for (std::thread& reader : readers) reader.join();
  std::printf("%lu evictions: %lu copies accepted, %lu refused, %lu wrong\n", evictions,
              accepted.load(), refused.load(), wrong.load());
  EXPECT_EQ(wrong.load(), 0u);
  EXPECT_GT(accepted.load(), 1000u);
  EXPECT_GT(refused.load(), 1000u) << "readers never met an eviction";
  core.RunAndWait([&] { tier->Stop(); });
}

}  // namespace
}  // namespace kvstore::tiers
