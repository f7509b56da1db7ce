// A disk that stops answering, answers late, or is full: when the tier stops asking it, and how it
// comes back. Real I/O on the fault file system.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "tests/support/fault_fs/fault_fs_mount.h"
#include "tiers/nvme/nvme_test_support.h"

namespace kvstore::tiers {
namespace {

using ::kvstore::testing::FaultFsMount;
using ::testing::HasSubstr;
using BackendKind = transfer::FileMover::BackendKind;

constexpr char kHang[] = "stall 600000";  // until the next command

// An operation that nobody waits for yet.
struct Pending {
  absl::Notification ended;
  absl::Status status;
};

class NvmeBreakerTest : public ::testing::TestWithParam<BackendKind> {
 protected:
  void SetUp() override {
    mount_ = FaultFsMount::Create();
    if (mount_ == nullptr) GTEST_SKIP() << FaultFsMount::kMissing;
    NvmeOptions options = TestOptions(mount_->path() + "/nvme");
    options.backend = GetParam();
    auto running = RunningTier::Start(options);
    ASSERT_TRUE(running.ok()) << running.status();
    running_ = *std::move(running);
  }
  void TearDown() override {
    if (mount_ != nullptr) Clear();
  }
  void Set(const std::string& command, const std::string& only = "pages") {
    ASSERT_TRUE(mount_->Set("only " + only));
    ASSERT_TRUE(mount_->Set(command));
  }
  void Clear() { ASSERT_TRUE(mount_->Set("clear")); }
  // How long it took; InfiniteDuration(): not within 15 s.
  absl::Duration TimeUntil(TierState state) {
    const absl::Time start = absl::Now();
    while (absl::Now() - start < absl::Seconds(15)) {
      if (running_->state() == state) return absl::Now() - start;
      absl::SleepFor(absl::Milliseconds(5));
    }
    return absl::InfiniteDuration();
  }
  std::shared_ptr<Pending> StartRead(PageId page, const TestPage& content, TestPage& into,
                                     absl::Duration limit) {
    auto pending = std::make_shared<Pending>();
    running_->OnCore([&] {
      running_->tier().Read(page, content.identity(), into.region(),
                            running_->clock().Now() + limit, [pending](absl::Status status) {
                              pending->status = std::move(status);
                              pending->ended.Notify();
                            });
    });
    return pending;
  }
  std::shared_ptr<Pending> StartWrite(PageId page, const TestPage& content) {
    auto pending = std::make_shared<Pending>();
    running_->OnCore([&] {
      running_->tier().Write(page, content.identity(), content.region(),
                             running_->clock().Now() + absl::Seconds(2),
                             [pending](absl::Status status) {
                               pending->status = std::move(status);
                               pending->ended.Notify();
                             });
    });
    return pending;
  }
  BreakerState breaker() {
    BreakerState state{};
    running_->OnCore([&] { state = running_->tier().breaker(); });
    return state;
  }

  std::unique_ptr<FaultFsMount> mount_;
  std::unique_ptr<RunningTier> running_;
};

TEST_P(NvmeBreakerTest, AHangingDiskIsGivenUpWithinThreeSecondsAndComesBackByItself) {
  TestPage content(1, kTestShape), into(kTestShape);
  const PageId page = *running_->Store(content);
  Set(kHang);
  const auto hanging = StartRead(page, content, into, absl::Milliseconds(200));
  const absl::Duration opened = TimeUntil(TierState::kFailed);
  EXPECT_LE(opened, absl::Seconds(3));
  EXPECT_NE(breaker(), BreakerState::kClosed);
  EXPECT_FALSE(hanging->ended.HasBeenNotified()) << "its memory is still the kernel's";

  const absl::Time before = absl::Now();
  for (int i = 0; i < 100; ++i) {
    const absl::Status status = running_->Check(page, content);
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  }
  EXPECT_TRUE(absl::IsUnavailable(running_->Reserve().status()));
  EXPECT_LT(absl::Now() - before, absl::Seconds(1)) << "refused at once, not at a deadline";
  EXPECT_THAT(running_->degraded(), HasSubstr("has not answered"));

  Clear();
  EXPECT_TRUE(hanging->ended.WaitForNotificationWithTimeout(absl::Seconds(10)));
  EXPECT_TRUE(absl::IsDeadlineExceeded(hanging->status)) << hanging->status;
  EXPECT_LE(TimeUntil(TierState::kServing), absl::Seconds(5)) << "without any traffic";
  EXPECT_EQ(breaker(), BreakerState::kClosed);
  EXPECT_EQ(running_->Check(page, content), absl::OkStatus());
  EXPECT_EQ(running_->stats().breaker_openings, 1u);
  EXPECT_EQ(running_->stats().quarantined_pages, 0u);
  EXPECT_EQ(running_->stats().in_flight, 0u);
  EXPECT_EQ(running_->degraded(), "");
}

TEST_P(NvmeBreakerTest, ADiskThatReadsNothingIsGivenUpAndItsPagesAreNotLost) {
  TestPage content(1, kTestShape);
  const PageId page = *running_->Store(content);
  Set("read_error 1");
  int lost = 0;
  for (int i = 0; i < 50; ++i) {
    const absl::Status status = running_->Check(page, content);
    lost += absl::IsDataLoss(status);
    EXPECT_TRUE(absl::IsDataLoss(status) || absl::IsUnavailable(status)) << status;
  }
  EXPECT_EQ(lost, 7) << "until it is clear that it is not the page";
  EXPECT_EQ(running_->state(), TierState::kFailed);
  // Half-open probes fail as long as the disk does.
  absl::SleepFor(absl::Milliseconds(2500));
  EXPECT_EQ(running_->state(), TierState::kFailed);
  EXPECT_EQ(running_->stats().breaker_openings, 1u);
  Clear();
  EXPECT_LE(TimeUntil(TierState::kServing), absl::Seconds(5));
  EXPECT_EQ(running_->Check(page, content), absl::OkStatus());
}

TEST_P(NvmeBreakerTest, ADiskThatAnswersTooLateIsGivenUp) {
  TestPage content(1, kTestShape);
  const PageId page = *running_->Store(content);
  Set("stall 300");
  TestPage into(kTestShape);
  for (int i = 0; i < 8; ++i) {
    const absl::Status status =
        running_->Read(page, content.identity(), into.region(), absl::Milliseconds(20));
    EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  }
  EXPECT_EQ(running_->state(), TierState::kFailed);
  EXPECT_EQ(running_->stats().deadline_misses, 8u);
  Clear();
  EXPECT_LE(TimeUntil(TierState::kServing), absl::Seconds(5));
  EXPECT_EQ(running_->Check(page, content), absl::OkStatus());
}

// 500 ms for every page is slow, not broken, for those who wait that long.
TEST_P(NvmeBreakerTest, ASlowDiskThatMeetsItsDeadlinesIsUsed) {
  TestPage content(1, kTestShape);
  const PageId page = *running_->Store(content);
  Set("stall 500");
  for (int i = 0; i < 6; ++i) EXPECT_EQ(running_->Check(page, content), absl::OkStatus());
  EXPECT_EQ(running_->state(), TierState::kServing);
  EXPECT_EQ(running_->stats().breaker_openings, 0u);
}

// Deadlines that pass in our own queue say nothing about the disk.
TEST_P(NvmeBreakerTest, TooMuchWorkDoesNotOpenTheBreaker) {
  TestPage content(1, kTestShape);
  const PageId page = *running_->Store(content);
  Set("stall 100");
  std::vector<std::unique_ptr<TestPage>> into;
  std::vector<std::shared_ptr<Pending>> reads;
  for (int i = 0; i < 64; ++i) {  // queue_depth is 16: the last ones wait for 300 ms
    into.push_back(std::make_unique<TestPage>(kTestShape));
    reads.push_back(StartRead(page, content, *into.back(), absl::Milliseconds(i < 16 ? 5000 : 1)));
  }
  int late = 0;
  for (const auto& read : reads) {
    read->ended.WaitForNotification();
    late += absl::IsDeadlineExceeded(read->status);
  }
  EXPECT_EQ(late, 48);
  EXPECT_EQ(running_->state(), TierState::kServing);
  EXPECT_EQ(running_->stats().breaker_openings, 0u);
}

TEST_P(NvmeBreakerTest, AHangingIndexStopsWritesOnly) {
  TestPage content(1, kTestShape), second(2, kTestShape);
  const PageId page = *running_->Store(content);
  const PageId other = *running_->Reserve();
  Set(kHang, "index");
  const auto hanging = StartWrite(other, second);
  EXPECT_LE(TimeUntil(TierState::kReadOnly), absl::Seconds(3));
  EXPECT_THAT(running_->degraded(), HasSubstr("the index has not answered"));
  for (int i = 0; i < 20; ++i) EXPECT_EQ(running_->Check(page, content), absl::OkStatus());
  EXPECT_TRUE(absl::IsUnavailable(running_->Reserve().status()));
  const absl::Time before = absl::Now();
  EXPECT_TRUE(absl::IsUnavailable(running_->SaveMetadata("key", "value")));
  EXPECT_LT(absl::Now() - before, absl::Milliseconds(500));
  Clear();
  EXPECT_TRUE(hanging->ended.WaitForNotificationWithTimeout(absl::Seconds(10)));
  EXPECT_LE(TimeUntil(TierState::kServing), absl::Seconds(10));
  EXPECT_TRUE(running_->Store(TestPage(3, kTestShape)).ok());
}

TEST_P(NvmeBreakerTest, WritesThatAllFailMakeItReadOnlyAndItComesBack) {
  TestPage content(1, kTestShape);
  const PageId page = *running_->Store(content);
  Set("write_error 1 5");
  const PageId other = *running_->Reserve();
  for (int i = 0; i < 8; ++i) EXPECT_FALSE(running_->Write(other, TestPage(2, kTestShape)).ok());
  EXPECT_EQ(running_->state(), TierState::kReadOnly);
  EXPECT_EQ(running_->Check(page, content), absl::OkStatus());
  Clear();
  EXPECT_LE(TimeUntil(TierState::kServing), absl::Seconds(10));
  EXPECT_EQ(running_->Write(other, TestPage(2, kTestShape)), absl::OkStatus());
}

TEST_P(NvmeBreakerTest, MetadataThatCouldNotBeSavedIsSavedWhenTheDiskIsBack) {
  Set(absl::StrCat("write_error 1 ", ENOSPC), "nvme");
  EXPECT_TRUE(absl::IsUnavailable(running_->SaveMetadata("a", "lost?")));
  EXPECT_EQ(running_->state(), TierState::kReadOnly);
  EXPECT_TRUE(absl::IsUnavailable(running_->SaveMetadata("a", "newest")));
  EXPECT_TRUE(absl::IsUnavailable(running_->SaveMetadata("b", "too")));
  Clear();
  EXPECT_LE(TimeUntil(TierState::kServing), absl::Seconds(10));
  EXPECT_EQ(running_->SaveMetadata("c", "after"), absl::OkStatus());  // behind the others
  NvmeOptions options = TestOptions(mount_->path() + "/nvme");
  options.backend = GetParam();
  running_.reset();
  running_ = *RunningTier::Start(options);
  const auto metadata = running_->Recover().metadata;
  EXPECT_EQ(metadata,
            (std::map<std::string, std::string>{{"a", "newest"}, {"b", "too"}, {"c", "after"}}));
}

INSTANTIATE_TEST_SUITE_P(Backends, NvmeBreakerTest,
                         ::testing::Values(BackendKind::kIoUring, BackendKind::kThreads),
                         [](const auto& param) {
                           return param.param == BackendKind::kIoUring ? "IoUring" : "Threads";
                         });

}  // namespace
}  // namespace kvstore::tiers
