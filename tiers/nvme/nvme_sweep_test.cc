// Every single read, write and fsync of a whole life of the tier fails once, and everything from it
// on; writes are lost or land elsewhere. Whatever is read back is right or is a miss.
#include <gtest/gtest.h>

#include <cerrno>
#include <cstdio>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "tests/support/fault_fs/fault_fs_mount.h"
#include "tiers/nvme/nvme_test_support.h"

namespace kvstore::tiers {
namespace {

using ::kvstore::testing::FaultFsMount;

class NvmeSweepTest : public ::testing::Test {
 protected:
  void SetUp() override {
    mount_ = FaultFsMount::Create();
    if (mount_ == nullptr) GTEST_SKIP() << FaultFsMount::kMissing;
  }
  NvmeOptions Options(const std::string& name) const {
    NvmeOptions options = TestOptions(mount_->path() + "/" + name);
    options.capacity_bytes = 24 << 20;
    return options;
  }

  // A life: two runs of storing, reading, releasing and stopping. Collects what was reported as
  // stored and not released since. Whatever fails, no read may yield wrong bytes.
  struct Life {
    std::set<uint32_t> stored;
    int starts_refused = 0;
    int failures = 0;
  };
  void Check(RunningTier& running, PageId page, uint32_t number, Life& life) {
    const absl::Status status = running.Check(page, TestPage(number, kTestShape));
    ASSERT_NE(status.code(), absl::StatusCode::kInternal) << status;  // wrong bytes
    life.failures += !status.ok();
  }
  void RunOnce(const std::string& name, uint32_t first, Life& life) {
    auto started = RunningTier::Start(Options(name));
    if (!started.ok()) {
      ++life.starts_refused;
      return;
    }
    RunningTier& running = **started;
    for (const RecoveredPage& page : running.Recover().pages) {
      Check(running, page.page, page.identity.block_index, life);
    }
    life.failures += !running.SaveMetadata("namespace", absl::StrCat(first)).ok();
    for (uint32_t number = first; number < first + 4; ++number) {
      const auto page = running.Store(TestPage(number, kTestShape));
      life.failures += !page.ok();
      if (!page.ok()) continue;
      Check(running, *page, number, life);
      if (number % 4 == 3) {
        running.Release(*page);
      } else {
        life.stored.insert(number);
      }
    }
    EXPECT_EQ(running.CheckInvariants(), absl::OkStatus());
  }
  Life Live(const std::string& name) {
    Life life;
    RunOnce(name, 0, life);
    RunOnce(name, 4, life);
    return life;
  }
  // With a sound disk again: a start succeeds, and everything found is right or a miss. Returns how
  // many of the pages that were reported are not there. A page whose release did not reach the
  // index may be back: its bytes are right, or its slot has another generation by now.
  size_t CountMissing(const std::string& name, const Life& life) {
    auto started = RunningTier::Start(Options(name));
    EXPECT_TRUE(started.ok()) << started.status();
    if (!started.ok()) return life.stored.size();
    std::set<uint32_t> missing = life.stored;
    Life after;
    for (const RecoveredPage& page : (*started)->Recover().pages) {
      const uint32_t number = page.identity.block_index;
      const int failures_before = after.failures;
      Check(**started, page.page, number, after);
      if (after.failures == failures_before) missing.erase(number);
    }
    EXPECT_TRUE((*started)->Store(TestPage(99, kTestShape)).ok());
    return missing.size();
  }
  void Sweep(const char* kind, int errno_to_give, long step) {
    ASSERT_TRUE(mount_->Set("clear"));
    const Life sound = Live("sound");
    const long operations = mount_->counts().operations;
    ASSERT_EQ(sound.failures + sound.starts_refused, 0);
    ASSERT_EQ(CountMissing("sound", sound), 0u);
    ASSERT_GT(operations, 40);
    int refused = 0, failed = 0, struck = 0;
    size_t missing = 0;
    for (long nth = 1; nth <= operations; nth += step) {
      const std::string name = absl::StrCat("life", nth);
      SCOPED_TRACE(absl::StrCat(kind, " ", nth, " of ", operations));
      ASSERT_TRUE(mount_->Set("clear"));
      ASSERT_TRUE(mount_->Set(absl::StrCat(kind, " ", nth, " ", errno_to_give)));
      const Life life = Live(name);
      struck += mount_->counts().faults > 0;
      ASSERT_TRUE(mount_->Set("clear"));
      missing += CountMissing(name, life);
      refused += life.starts_refused;
      failed += life.failures;
      std::error_code error;
      std::filesystem::remove_all(mount_->backing() + "/" + name, error);
      if (HasFatalFailure()) return;
    }
    std::printf(
        "%s errno %d: %ld operations, every %ldth failed in turn; struck %d, starts refused %d, "
        "operations failed %d, reported pages not found later %zu, wrong bytes 0\n",
        kind, errno_to_give, operations, step, struck, refused, failed, missing);
    EXPECT_GT(struck, operations / step * 9 / 10);
    EXPECT_GT(refused, 0);
    EXPECT_GT(failed, 0);
  }

  std::unique_ptr<FaultFsMount> mount_;
};

TEST_F(NvmeSweepTest, AnyOneOperationFailsWithEio) { Sweep("fail_nth", EIO, 1); }
TEST_F(NvmeSweepTest, AnyOneOperationFailsWithEnospc) { Sweep("fail_nth", ENOSPC, 3); }
TEST_F(NvmeSweepTest, EverythingFailsFromAnyOperationOn) { Sweep("fail_from", EIO, 2); }

// Writes of pages that the disk reports as done: never done, or done at another slot, or both. A
// slot holds what it held before, or another page: valid in itself, and in the wrong place.
TEST_F(NvmeSweepTest, LostAndMisdirectedWritesAreMisses) {
  auto started = RunningTier::Start(TestOptions(mount_->path() + "/nvme"));
  ASSERT_TRUE(started.ok()) << started.status();
  RunningTier& running = **started;
  ASSERT_TRUE(mount_->Set("only pages"));
  int rounds = 0, misses = 0;
  for (const char* fault : {"write_lost 2", "write_elsewhere 2"}) {
    ASSERT_TRUE(mount_->Set("clear"));
    ASSERT_TRUE(mount_->Set("only pages"));
    ASSERT_TRUE(mount_->Set(fault));
    for (uint32_t round = 0; round < 100; ++round) {
      std::map<uint32_t, PageId> pages;
      for (uint32_t i = 0; i < 10; ++i) {
        const uint32_t number = round * 10 + i;
        const auto page = running.Store(TestPage(number, kTestShape));
        ASSERT_TRUE(page.ok()) << page.status();
        pages[number] = *page;
      }
      for (const auto& [number, page] : pages) {
        const absl::Status status = running.Check(page, TestPage(number, kTestShape));
        ASSERT_TRUE(status.ok() || absl::IsDataLoss(status)) << status;
        misses += !status.ok();
        ++rounds;
        running.Release(page);
      }
    }
  }
  std::printf("lost and misdirected writes: %d pages, %d misses, wrong bytes 0\n", rounds, misses);
  EXPECT_GE(misses, rounds / 2);
}

// Reads, live: a flipped bit, another place.
TEST_F(NvmeSweepTest, FlippedAndMisdirectedReadsAreMissesLive) {
  auto started = RunningTier::Start(TestOptions(mount_->path() + "/nvme"));
  ASSERT_TRUE(started.ok()) << started.status();
  RunningTier& running = **started;
  std::vector<PageId> pages;
  for (uint32_t i = 0; i < 20; ++i) pages.push_back(*running.Store(TestPage(i, kTestShape)));
  for (const char* fault : {"read_flip 1", "read_elsewhere 1"}) {
    ASSERT_TRUE(mount_->Set("clear"));
    ASSERT_TRUE(mount_->Set("only pages"));
    ASSERT_TRUE(mount_->Set(fault));
    for (uint32_t i = 0; i < 2000; ++i) {
      const absl::Status status = running.Check(pages[i % 20], TestPage(i % 20, kTestShape));
      ASSERT_TRUE(absl::IsDataLoss(status)) << status;
    }
  }
  EXPECT_EQ(running.stats().checksum_errors, 4000u);
  EXPECT_EQ(running.stats().breaker_openings, 0u) << "the disk answers";
}

}  // namespace
}  // namespace kvstore::tiers
