// A disk that fails: the tier on the fault file system.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstdio>
#include <map>

#include "absl/strings/str_cat.h"
#include "tests/support/fault_fs/fault_fs_mount.h"
#include "tiers/nvme/nvme_test_support.h"

namespace kvstore::tiers {
namespace {

using ::kvstore::testing::FaultFsMount;
using ::testing::HasSubstr;
using BackendKind = transfer::FileMover::BackendKind;

class NvmeFaultTest : public ::testing::TestWithParam<BackendKind> {
 protected:
  void SetUp() override {
    mount_ = FaultFsMount::Create();
    if (mount_ == nullptr) GTEST_SKIP() << FaultFsMount::kMissing;
    Start();
  }
  void Start() {
    NvmeOptions options = TestOptions(mount_->path() + "/nvme");
    options.backend = GetParam();
    auto running = RunningTier::Start(options);
    ASSERT_TRUE(running.ok()) << running.status();
    running_ = *std::move(running);
  }
  // For faults of the pages only, or of the index only.
  void Set(const std::string& command, const std::string& only = "pages") {
    ASSERT_TRUE(mount_->Set("only " + only));
    ASSERT_TRUE(mount_->Set(command));
  }
  void Clear() { ASSERT_TRUE(mount_->Set("clear")); }

  std::unique_ptr<FaultFsMount> mount_;
  std::unique_ptr<RunningTier> running_;
};

TEST_P(NvmeFaultTest, AReadErrorLosesThatPageAndNothingElseSuffers) {
  TestPage content(1, kTestShape);
  const PageId page = *running_->Store(content);
  for (int every = 2; every <= 5; ++every) {
    Set(absl::StrCat("read_error ", every));
    int failures = 0;
    for (int i = 0; i < 20; ++i) {
      const absl::Status status = running_->Check(page, content);
      EXPECT_TRUE(status.ok() || absl::IsDataLoss(status)) << status;
      failures += !status.ok();
    }
    EXPECT_EQ(failures, 20 / every);
  }
  Clear();
  EXPECT_EQ(running_->Check(page, content), absl::OkStatus());
  EXPECT_EQ(running_->stats().read_errors, 10u + 6 + 5 + 4);
  EXPECT_EQ(running_->stats().breaker_openings, 0u);
  EXPECT_EQ(running_->state(), TierState::kServing);
}

TEST_P(NvmeFaultTest, WriteErrorsFailThatWriteAndLeaveNoRecord) {
  Set("write_error 2 5");  // EIO
  std::vector<uint32_t> stored;
  for (uint32_t i = 0; i < 20; ++i) {
    TestPage content(i, kTestShape);
    const PageId page = *running_->Reserve();
    const absl::Status status = running_->Write(page, content);
    if (status.ok()) {
      stored.push_back(i);
    } else {
      EXPECT_TRUE(absl::IsUnavailable(status)) << status;
      running_->Release(page);
    }
  }
  EXPECT_EQ(stored.size(), 10u);
  EXPECT_EQ(running_->stats().write_errors, 10u);
  EXPECT_EQ(running_->state(), TierState::kServing);
  Clear();
  running_.reset();
  Start();
  const auto recovered = running_->Recover();
  ASSERT_EQ(recovered.pages.size(), 10u);
  for (size_t i = 0; i < 10; ++i) {
    EXPECT_EQ(recovered.pages[i].identity.block_index, stored[i]);
    EXPECT_EQ(running_->Check(recovered.pages[i].page, TestPage(stored[i], kTestShape)),
              absl::OkStatus());
  }
}

TEST_P(NvmeFaultTest, FlippedAndMisdirectedReadsAreDataLoss) {
  TestPage content(1, kTestShape), neighbour(2, kTestShape);
  const PageId page = *running_->Store(content);
  ASSERT_TRUE(running_->Store(neighbour).ok());
  for (const char* fault : {"read_flip 1", "read_elsewhere 1"}) {
    Clear();
    Set(fault);
    for (int i = 0; i < 50; ++i) EXPECT_TRUE(absl::IsDataLoss(running_->Check(page, content)));
  }
  Clear();
  EXPECT_EQ(running_->Check(page, content), absl::OkStatus());
  EXPECT_EQ(running_->stats().checksum_errors, 100u);
}

TEST_P(NvmeFaultTest, ShortReadsAreContinued) {
  TestPage content(1, kTestShape);
  const PageId page = *running_->Store(content);
  Set("read_short 2");
  for (int i = 0; i < 20; ++i) {
    const absl::Status status = running_->Check(page, content);
    EXPECT_EQ(status, absl::OkStatus());
  }
}

TEST_P(NvmeFaultTest, AFullDiskMakesItReadOnlyAndItComesBack) {
  TestPage content(1, kTestShape);
  const PageId page = *running_->Store(content);
  Set(absl::StrCat("write_error 1 ", ENOSPC), "nvme");  // pages and probes alike
  const PageId other = *running_->Reserve();
  EXPECT_TRUE(absl::IsUnavailable(running_->Write(other, content)));
  EXPECT_EQ(running_->state(), TierState::kReadOnly);
  EXPECT_THAT(running_->degraded(), HasSubstr("No space left"));
  EXPECT_TRUE(absl::IsUnavailable(running_->Reserve().status()));
  EXPECT_EQ(running_->Check(page, content), absl::OkStatus());
  running_->Release(other);
  Clear();
  const absl::Time limit = absl::Now() + absl::Seconds(10);
  while (running_->state() != TierState::kServing && absl::Now() < limit) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_EQ(running_->state(), TierState::kServing);
  EXPECT_EQ(running_->degraded(), "");
  EXPECT_TRUE(running_->Store(TestPage(2, kTestShape)).ok());
}

TEST_P(NvmeFaultTest, AFailingIndexFailsTheWriteAndReadsGoOn) {
  TestPage content(1, kTestShape);
  const PageId page = *running_->Store(content);
  Set("write_error 1 5", "index");
  const PageId other = *running_->Reserve();
  EXPECT_TRUE(absl::IsUnavailable(running_->Write(other, TestPage(2, kTestShape))));
  EXPECT_EQ(running_->state(), TierState::kReadOnly);
  EXPECT_FALSE(running_->SaveMetadata("key", "value").ok());
  EXPECT_EQ(running_->Check(page, content), absl::OkStatus());
  running_->Release(other);
  Clear();
  running_.reset();
  Start();
  const auto recovered = running_->Recover();
  EXPECT_EQ(recovered.finished, absl::OkStatus());
  EXPECT_TRUE(recovered.metadata.empty());
  ASSERT_EQ(recovered.pages.size(), 1u);
  EXPECT_EQ(running_->Check(recovered.pages[0].page, content), absl::OkStatus());
}

TEST_P(NvmeFaultTest, WhatAFailedFsyncMayHaveLostIsDiscarded) {
  ASSERT_TRUE(running_->Store(TestPage(1, kTestShape)).ok());
  running_.reset();  // synced
  Start();
  ASSERT_EQ(running_->Recover().pages.size(), 1u);
  ASSERT_TRUE(running_->Store(TestPage(2, kTestShape)).ok());
  Set("fsync_error 5");
  running_.reset();
  Clear();
  Start();
  const auto recovered = running_->Recover();
  ASSERT_EQ(recovered.pages.size(), 1u);
  EXPECT_EQ(recovered.pages[0].identity.block_index, 1u);
}

TEST_P(NvmeFaultTest, MetadataIsNotSavedWhenItCannotReachTheDisk) {
  Set("fsync_error 5", "index");
  EXPECT_FALSE(running_->SaveMetadata("key", "value").ok());
  Clear();
}

// Every I/O of the index in turn: from a start through some stores, one write or fsync fails.
// Nothing aborts, and whatever was reported as stored is found by the next start.
TEST_P(NvmeFaultTest, AnyFailingIndexWriteLosesNothingThatWasReported) {
  running_.reset();
  int starts_refused = 0, writes_refused = 0;
  for (const char* fault : {"write_error %d 5", "write_error %d 28", "fsync_error 5"}) {
    for (int nth = 1; nth <= (std::string(fault)[0] == 'f' ? 1 : 16); ++nth) {
      SCOPED_TRACE(absl::StrCat(fault, " ", nth));
      NvmeOptions options = TestOptions(mount_->path() + "/sweep");
      options.backend = GetParam();
      std::vector<uint32_t> reported;
      char command[64];
      std::snprintf(command, sizeof command, fault, nth);
      Set(command, "index");
      {
        auto running = RunningTier::Start(options);
        if (!running.ok()) {
          ++starts_refused;
        } else {
          (void)(*running)->SaveMetadata("key", "value");
          for (uint32_t i = 0; i < 12; ++i) {
            auto page = (*running)->Store(TestPage(i, kTestShape));
            if (page.ok()) reported.push_back(i);
            writes_refused += !page.ok();
          }
        }
      }
      Clear();
      auto running = RunningTier::Start(options);
      ASSERT_TRUE(running.ok()) << running.status();
      std::map<uint32_t, PageId> found;
      for (const RecoveredPage& page : (*running)->Recover().pages) {
        found[page.identity.block_index] = page.page;
      }
      for (uint32_t i : reported) {
        ASSERT_TRUE(found.contains(i)) << i;
        EXPECT_EQ((*running)->Check(found[i], TestPage(i, kTestShape)), absl::OkStatus());
      }
      for (const auto& [number, page] : found) (*running)->Release(page);
    }
  }
  EXPECT_GT(starts_refused, 0);
  EXPECT_GT(writes_refused, 0);
}

// A disk that answers nothing for a second: late operations end when the kernel lets go, the core
// thread answers all the while.
TEST_P(NvmeFaultTest, AStalledDiskDelaysItsOwnOperationsOnly) {
  TestPage content(1, kTestShape);
  const PageId page = *running_->Store(content);
  Set("stall 1000");
  TestPage into(kTestShape);
  absl::Notification finished;
  absl::Status read_status;
  const absl::Time start = absl::Now();
  absl::Duration took;
  running_->OnCore([&] {
    running_->tier().Read(page, content.identity(), into.region(),
                          running_->clock().Now() + absl::Milliseconds(50),
                          [&](absl::Status status) {
                            read_status = status;
                            took = absl::Now() - start;
                            finished.Notify();
                          });
  });
  absl::Duration slowest;
  while (!finished.HasBeenNotified()) {
    const absl::Time before = absl::Now();
    running_->OnCore([&] { (void)running_->tier().stats(); });
    slowest = std::max(slowest, absl::Now() - before);
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_TRUE(absl::IsDeadlineExceeded(read_status)) << read_status;
  EXPECT_GE(took, absl::Milliseconds(50));
  EXPECT_LT(took, absl::Milliseconds(2500));  // one stall, not a hang
  EXPECT_LT(slowest, absl::Milliseconds(500));
  EXPECT_EQ(running_->stats().in_flight, 0u);
  Clear();
  EXPECT_EQ(running_->Check(page, content), absl::OkStatus());
}

INSTANTIATE_TEST_SUITE_P(Backends, NvmeFaultTest,
                         ::testing::Values(BackendKind::kIoUring, BackendKind::kThreads),
                         [](const auto& param) {
                           return param.param == BackendKind::kIoUring ? "IoUring" : "Threads";
                         });

}  // namespace
}  // namespace kvstore::tiers
