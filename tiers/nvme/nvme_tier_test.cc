// The NVMe tier on real files, through io_uring and through pread/pwrite.
#include "tiers/nvme/nvme_tier.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>

#include "absl/strings/str_cat.h"
#include "tiers/nvme/nvme_test_support.h"
#include "tiers/nvme/superblock.h"

namespace kvstore::tiers {
namespace {

using BackendKind = transfer::FileMover::BackendKind;

std::string Contents(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class NvmeTierTest : public testing::TestWithParam<BackendKind> {
 protected:
  NvmeOptions Options() {
    NvmeOptions options = TestOptions(directory_.path());
    options.backend = GetParam();
    return options;
  }
  std::unique_ptr<RunningTier> Start() { return Start(Options()); }
  std::unique_ptr<RunningTier> Start(NvmeOptions options) {
    auto running = RunningTier::Start(std::move(options));
    EXPECT_TRUE(running.ok()) << running.status();
    return *std::move(running);
  }

  TestDirectory directory_;
};

TEST_P(NvmeTierTest, ReadsBackWhatWasWritten) {
  auto running = Start();
  EXPECT_EQ(running->tier().backend_name(),
            GetParam() == BackendKind::kIoUring ? "io_uring" : "pread/pwrite");
  EXPECT_EQ(running->degraded(), "");
  for (uint32_t i = 0; i < 20; ++i) {
    TestPage content(i, kTestShape);
    auto page = running->Store(content);
    ASSERT_TRUE(page.ok()) << page.status();
    EXPECT_EQ(page->generation % 2, 1u);
    EXPECT_EQ(running->Check(*page, content), absl::OkStatus());
  }
  EXPECT_EQ(running->stats().used_pages, 20u);
  EXPECT_EQ(running->stats().in_flight, 0u);
  EXPECT_EQ(running->CheckInvariants(), absl::OkStatus());
}

TEST_P(NvmeTierTest, SlicesAreToldInOrderWithTheirBytesInPlace) {
  // Slices within a piece, over several pieces, and with their end in the tail.
  const PageShape shapes[] = {{20, 1000}, {6, 21001}, {3, 4096}, {3, 8191}, {1024, 16}};
  NvmeOptions options = Options();
  options.piece_bytes = 4096;
  auto running = Start(options);
  for (uint32_t i = 0; i < std::size(shapes); ++i) {
    const PageShape shape = shapes[i];
    running->OnCore([&] {
      ASSERT_TRUE(
          running->tier().OpenPool(PoolId(100 + i), {.slot_bytes = shape.slot_bytes()}).ok());
    });
    TestPage content(i, shape), into(shape);
    const auto page = running->Reserve(PoolId(100 + i));
    ASSERT_TRUE(page.ok()) << page.status();
    ASSERT_EQ(running->Write(*page, content), absl::OkStatus());
    std::vector<uint32_t> told;
    ASSERT_EQ(running->ReadBySlices(*page, content.identity(), into.region(),
                                    [&](uint32_t ready) {
                                      told.push_back(ready);
                                      EXPECT_EQ(
                                          std::memcmp(into.region().data, content.region().data,
                                                      uint64_t{ready} * shape.slice_bytes),
                                          0);
                                    }),
              absl::OkStatus());
    EXPECT_TRUE(into.SameBytes(content)) << "trailer included";
    EXPECT_TRUE(std::ranges::is_sorted(told));
    EXPECT_GE(told.size(), 2u) << i;
    EXPECT_EQ(told.back(), shape.num_slices);
  }
  EXPECT_EQ(running->stats().in_flight, 0u);
}

TEST_P(NvmeTierTest, SmallPagesAreReadAtOnce) {
  auto running = Start();  // pieces of 1 MiB
  TestPage content(1, kTestShape), into(kTestShape);
  const auto page = running->Store(content);
  ASSERT_TRUE(page.ok());
  EXPECT_EQ(running->ReadBySlices(*page, content.identity(), into.region(),
                                  [](uint32_t) { ADD_FAILURE() << "told"; }),
            absl::OkStatus());
  EXPECT_TRUE(into.SameBytes(content));
}

TEST_P(NvmeTierTest, AllShapesOfTailsReadBack) {
  // Around the edges of 4 KiB blocks: all tail, no tail to spare, padding split over two blocks.
  const PageShape shapes[] = {{1, 1},    {1, 4095}, {1, 4096},   {1, 4097}, {1, 8191},
                              {1, 8192}, {3, 4093}, {1024, 511}, {2, 65536}};
  auto running = Start();
  for (uint32_t i = 0; i < std::size(shapes); ++i) {
    const PoolId pool(100 + i);
    running->OnCore([&] {
      ASSERT_TRUE(running->tier().OpenPool(pool, {.slot_bytes = shapes[i].slot_bytes()}).ok());
    });
    TestPage content(i, shapes[i]);
    auto page = running->Reserve(pool);
    ASSERT_TRUE(page.ok()) << page.status();
    ASSERT_EQ(running->Write(*page, content), absl::OkStatus());
    EXPECT_EQ(running->Check(*page, content), absl::OkStatus());
    running->Release(*page);
  }
}

TEST_P(NvmeTierTest, FindsItsPagesAndMetadataAgain) {
  constexpr uint32_t kCount = 40;
  std::vector<PageId> before;
  {
    auto running = Start();
    ASSERT_EQ(running->SaveMetadata("namespace/1", "spec"), absl::OkStatus());
    ASSERT_EQ(running->SaveMetadata("namespace/2", "gone"), absl::OkStatus());
    ASSERT_EQ(running->SaveMetadata("namespace/2", ""), absl::OkStatus());
    for (uint32_t i = kCount; i-- > 0;) {
      auto page = running->Store(TestPage(i, kTestShape));
      ASSERT_TRUE(page.ok());
      before.push_back(*page);
    }
    running->Release(before[kCount - 1 - 5]);
  }
  auto running = Start();
  EXPECT_TRUE(absl::IsUnavailable(running->Reserve().status()));
  const auto recovered = running->Recover();
  EXPECT_EQ(recovered.finished, absl::OkStatus());
  EXPECT_EQ(recovered.metadata, (std::map<std::string, std::string>{{"namespace/1", "spec"}}));
  ASSERT_EQ(recovered.pages.size(), kCount - 1);
  uint32_t last_index = 0;
  for (const RecoveredPage& page : recovered.pages) {
    EXPECT_GE(page.identity.block_index, last_index);  // parents before children
    last_index = page.identity.block_index;
    EXPECT_NE(last_index, 5u);
    TestPage content(page.identity.block_index, kTestShape);
    EXPECT_EQ(page.identity.hash, content.identity().hash);
    EXPECT_EQ(page.identity.parent, content.identity().parent);
    EXPECT_EQ(running->Check(page.page, content), absl::OkStatus());
  }
  auto fresh = running->Store(TestPage(1000, kTestShape));
  ASSERT_TRUE(fresh.ok());
  EXPECT_EQ(running->CheckInvariants(), absl::OkStatus());
}

// The index keeps 48 bits of a page's generation; on disk a start takes 2^40 of them.
TEST_P(NvmeTierTest, AThousandStartsLaterPagesAreStillFound) {
  { auto running = Start(); }
  const std::string file = directory_.path() + "/superblock";
  std::string bytes = Contents(file);
  Superblock superblock = *DecodeSuperblock(std::as_bytes(std::span(bytes)));
  superblock.opens = 1000;
  const auto edited = EncodeSuperblock(superblock);
  std::ofstream(file).write(reinterpret_cast<const char*>(edited.data()), edited.size());
  const TestPage content(1, kTestShape);
  std::string former;
  for (int start = 0; start < 3; ++start) {
    auto running = Start();
    const auto recovered = running->Recover();
    ASSERT_EQ(recovered.pages.size(), start == 0 ? 0u : 1u);
    if (start > 0) {
      TestPage read(1, kTestShape);
      EXPECT_EQ(running->Check(recovered.pages[0].page, read), absl::OkStatus());
      running->Release(recovered.pages[0].page);
    }
    const PageId page = *running->Store(content);
    EXPECT_LT(page.generation, uint64_t{1} << 40);
    running->Stop();
    const std::string slot =
        Contents(directory_.path() + "/pages")
            .substr(page.slot * kTestShape.slot_bytes(), kTestShape.slot_bytes());
    EXPECT_NE(slot, former) << "the same block in the same slot, but another generation on disk";
    former = slot;
  }
}

TEST_P(NvmeTierTest, PagesThatTheStoreRefusesAreReleasedForGood) {
  {
    auto running = Start();
    for (uint32_t i = 0; i < 10; ++i) ASSERT_TRUE(running->Store(TestPage(i, kTestShape)).ok());
  }
  {
    auto running = Start();
    running->Recover([](const RecoveredPage& page) { return page.identity.block_index < 4; });
    EXPECT_EQ(running->stats().used_pages, 4u);
    EXPECT_EQ(running->tier().recovery().refused, 6u);
  }
  auto running = Start();
  EXPECT_EQ(running->Recover().pages.size(), 4u);
}

TEST_P(NvmeTierTest, ASlotUsedAgainAnswersOnlyForItsNewPage) {
  auto running = Start();
  TestPage first(1, kTestShape), second(2, kTestShape);
  auto page = running->Store(first);
  ASSERT_TRUE(page.ok());
  running->Release(*page);
  auto again = running->Store(second);
  ASSERT_TRUE(again.ok());
  ASSERT_EQ(again->slot, page->slot);
  EXPECT_GT(again->generation, page->generation);
  EXPECT_TRUE(absl::IsFailedPrecondition(running->Check(*page, first)));
  EXPECT_TRUE(absl::IsDataLoss(running->Check(*again, first)));
  EXPECT_EQ(running->Check(*again, second), absl::OkStatus());
}

TEST_P(NvmeTierTest, AWriteWhoseSourceIsNotWhatItSaysIsDataLoss) {
  auto running = Start();
  TestPage content(1, kTestShape);
  content.region().data[5] ^= std::byte{1};
  auto page = running->Reserve();
  EXPECT_TRUE(absl::IsDataLoss(running->Write(*page, content)));
  EXPECT_EQ(running->stats().checksum_errors, 1u);
  running->Release(*page);
  running.reset();
  EXPECT_TRUE(Start()->Recover().pages.empty());
}

TEST_P(NvmeTierTest, CallsThatBreakTheContractAreRefused) {
  auto running = Start();
  TestPage content(1, kTestShape);
  auto page = running->Store(content);
  ASSERT_TRUE(page.ok());
  const MutableRegion region = content.region();
  EXPECT_TRUE(absl::IsInvalidArgument(
      running->Read(*page, content.identity(), {region.data, region.bytes - 4096})));
  EXPECT_TRUE(absl::IsInvalidArgument(
      running->Read(*page, content.identity(), {region.data + 8, region.bytes})));
  PageId other = *page;
  other.generation += 2;
  EXPECT_TRUE(absl::IsFailedPrecondition(running->Read(other, content.identity(), region)));
  auto unwritten = running->Reserve();
  EXPECT_TRUE(absl::IsFailedPrecondition(running->Read(*unwritten, content.identity(), region)));
}

TEST_P(NvmeTierTest, MoreOperationsThanAllowedAreRefusedNotQueued) {
  NvmeOptions options = Options();
  options.queue_depth = 2;
  options.inflight_max = 4;
  auto running = Start(options);
  TestPage content(1, kTestShape);
  auto page = running->Store(content);
  ASSERT_TRUE(page.ok());
  std::vector<std::unique_ptr<TestPage>> targets;
  for (int i = 0; i < 6; ++i) targets.push_back(std::make_unique<TestPage>(kTestShape));
  int ok = 0, refused = 0;
  absl::Notification all;
  running->OnCore([&] {
    for (auto& target : targets) {
      running->tier().Read(*page, content.identity(), target->region(), absl::InfiniteFuture(),
                           [&](absl::Status status) {
                             ok += status.ok();
                             refused += absl::IsResourceExhausted(status);
                             if (ok + refused == 6) all.Notify();
                           });
    }
    EXPECT_EQ(ok + refused, 0);  // never inside the call
  });
  all.WaitForNotification();
  EXPECT_EQ(ok, 4);
  EXPECT_EQ(refused, 2);
}

TEST_P(NvmeTierTest, StopEndsEveryOperation) {
  auto running = Start();
  TestPage content(1, kTestShape);
  std::vector<PageId> pages;
  for (int i = 0; i < 30; ++i) pages.push_back(*running->Reserve());
  int ended = 0;
  running->OnCore([&] {
    for (PageId page : pages) {
      running->tier().Write(page, content.identity(), content.region(), absl::InfiniteFuture(),
                            [&](absl::Status status) { ended += status.ok(); });
    }
    running->tier().Stop();
    EXPECT_EQ(ended, 30);
    running->tier().Write(pages[0], content.identity(), content.region(), absl::InfiniteFuture(),
                          [&](absl::Status status) { ended += absl::IsUnavailable(status); });
    EXPECT_TRUE(absl::IsUnavailable(running->tier().Reserve(kTestPool).status()));
  });
  running->Stop();
  EXPECT_EQ(ended, 31);
}

TEST_P(NvmeTierTest, FillsExactlyAndGivesBackExactly) {
  auto running = Start();
  const uint64_t slots_per_extent = running->tier().layout().extent_bytes / kTestShape.slot_bytes();
  const uint64_t slots = slots_per_extent * running->tier().layout().extents_per_dir;
  uint64_t free_slots = 0;
  running->OnCore([&] { free_slots = running->tier().FreeSlots(kTestPool); });
  EXPECT_EQ(free_slots, slots);
  std::vector<PageId> pages;
  for (uint64_t i = 0; i < slots; ++i) {
    auto page = running->Reserve();
    ASSERT_TRUE(page.ok()) << i << page.status();
    pages.push_back(*page);
  }
  EXPECT_TRUE(absl::IsResourceExhausted(running->Reserve().status()));
  for (PageId page : pages) running->Release(page);
  running->OnCore([&] { free_slots = running->tier().FreeSlots(kTestPool); });
  EXPECT_EQ(free_slots, slots);
}

TEST_P(NvmeTierTest, AllFilesTogetherStayBelowTheCapacity) {
  auto running = Start();
  // Pages come and go: the index's log and levels turn over many times.
  TestPage content(1, kTestShape);
  std::vector<PageId> pages;
  uint64_t most = 0;
  for (int round = 0; round < 40; ++round) {
    for (int i = 0; i < 200; ++i) {
      auto page = running->Store(content);
      ASSERT_TRUE(page.ok()) << page.status();
      pages.push_back(*page);
    }
    for (PageId page : pages) running->Release(page);
    pages.clear();
    uint64_t bytes = 0;
    std::error_code error;
    for (const auto& file :
         std::filesystem::recursive_directory_iterator(directory_.path(), error)) {
      struct stat found {};
      if (stat(file.path().c_str(), &found) == 0 && S_ISREG(found.st_mode)) {
        bytes += static_cast<uint64_t>(found.st_blocks) * 512;
      }
    }
    most = std::max(most, bytes);
  }
  EXPECT_LE(most, Options().capacity_bytes);
}

TEST_P(NvmeTierTest, TheIndexBoundsTheNumberOfPages) {
  NvmeOptions options = Options();
  options.index_bytes = 4 << 20;
  auto running = Start(options);
  const uint64_t records_max = (4 << 20) / 2 / kIndexBytesPerRecord;
  EXPECT_EQ(running->tier().layout().records_max, records_max);
  const PageShape small{1, 1};
  running->OnCore([&] {
    ASSERT_TRUE(running->tier().OpenPool(PoolId(9), {.slot_bytes = small.slot_bytes()}).ok());
  });
  running->OnCore([&] {
    for (uint64_t i = 0; i < records_max; ++i) {
      ASSERT_TRUE(running->tier().Reserve(PoolId(9)).ok()) << i;
    }
    EXPECT_TRUE(absl::IsResourceExhausted(running->tier().Reserve(PoolId(9)).status()));
  });
}

TEST_P(NvmeTierTest, SpreadsOverDirectoriesAndFindsAllAgain) {
  NvmeOptions options = Options();
  options.dirs = {directory_.file("a"), directory_.file("b"), directory_.file("c")};
  {
    auto running = Start(options);
    for (uint32_t i = 0; i < 300; ++i) ASSERT_TRUE(running->Store(TestPage(i, kTestShape)).ok());
    EXPECT_TRUE(std::filesystem::exists(directory_.file("a/index")));
    EXPECT_FALSE(std::filesystem::exists(directory_.file("b/index")));
  }
  {
    auto running = Start(options);
    const auto recovered = running->Recover();
    ASSERT_EQ(recovered.pages.size(), 300u);
    std::vector<int> per_dir(3, 0);
    for (const RecoveredPage& page : recovered.pages) {
      ++per_dir[page.page.slab % 3];
      EXPECT_EQ(running->Check(page.page, TestPage(page.identity.block_index, kTestShape)),
                absl::OkStatus());
    }
    for (int count : per_dir) EXPECT_GT(count, 0);
  }
  std::swap(options.dirs[0], options.dirs[1]);
  EXPECT_TRUE(absl::IsFailedPrecondition(RunningTier::Start(options).status()));
  options.dirs.pop_back();
  EXPECT_TRUE(absl::IsFailedPrecondition(RunningTier::Start(options).status()));
  options.dirs = {directory_.file("a"), directory_.file("b"), directory_.file("new")};
  EXPECT_TRUE(absl::IsFailedPrecondition(RunningTier::Start(options).status()));
}

TEST_P(NvmeTierTest, GrowsAndShrinksBetweenRuns) {
  NvmeOptions options = Options();
  { ASSERT_TRUE(Start(options)->Store(TestPage(1, kTestShape)).ok()); }
  options.capacity_bytes = 80 << 20;
  options.extent_bytes = 0;  // what was stored counts
  uint32_t slabs = 0;
  {
    auto running = Start(options);
    EXPECT_EQ(running->Recover().pages.size(), 1u);
    slabs = running->tier().layout().extents_per_dir;
    for (uint32_t i = 2; i < slabs * (4 << 20) / kTestShape.slot_bytes(); ++i) {
      auto page = running->Store(TestPage(i, kTestShape));
      if (!page.ok()) break;
    }
  }
  options.capacity_bytes = 20 << 20;
  auto running = Start(options);
  const auto recovered = running->Recover();
  EXPECT_GT(running->tier().recovery().out_of_range, 0u);
  EXPECT_EQ(running->stats().used_pages, recovered.pages.size());
  for (const RecoveredPage& page : recovered.pages) {
    EXPECT_EQ(running->Check(page.page, TestPage(page.identity.block_index, kTestShape)),
              absl::OkStatus());
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, NvmeTierTest,
                         testing::Values(BackendKind::kIoUring, BackendKind::kThreads),
                         [](const auto& param) {
                           return param.param == BackendKind::kIoUring ? "IoUring" : "Threads";
                         });

}  // namespace
}  // namespace kvstore::tiers
