#include "transfer/memory/memory_mover.h"

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"
#include "transfer/memory/page_codec.h"

namespace kvstore::transfer {
namespace {

// Time that tests set, readable from the mover's threads. Now() can be held, which holds a mover
// thread between two jobs.
class HeldClock final : public Clock {
 public:
  absl::Time Now() const override {
    asked_.Notify();
    go_.WaitForNotification();
    return now;
  }
  void WaitUntilAsked() const { asked_.WaitForNotification(); }
  void Go() { go_.Notify(); }
  absl::Time now = absl::UnixEpoch();

 private:
  struct Once {
    void Notify() {
      if (!done.exchange(true)) notification.Notify();
    }
    void WaitForNotification() { notification.WaitForNotification(); }
    std::atomic<bool> done = false;
    absl::Notification notification;
  };
  mutable Once asked_, go_;
};

struct SealedSlot {
  explicit SealedSlot(uint8_t fill, PageShape shape = {4, 4096}) {
    identity.shape = shape;
    identity.hash.bytes[0] = fill;
    std::vector<std::byte> page(shape.page_bytes(), std::byte{fill});
    bytes.resize(shape.slot_bytes());
    identity.page_checksum = CopyIntoSlot(bytes.data(), page.data(), identity);
  }
  PageIdentity identity;
  std::vector<std::byte> bytes;
};

class MemoryMoverTest : public testing::Test {
 protected:
  MemoryMover::Done Record() {
    return [this](absl::Status status) {
      EXPECT_TRUE(loop_thread_ == std::thread::id() || std::this_thread::get_id() == loop_thread_);
      results_.push_back(std::move(status));
    };
  }
  void RunUntil(EventLoop& loop, size_t num_results) {
    for (;;) {
      size_t have = 0;
      loop.RunAndWait([&] { have = results_.size(); });
      if (have >= num_results) return;
      std::this_thread::yield();
    }
  }
  std::vector<absl::Status> results_;
  std::thread::id loop_thread_;
  MonotonicClock clock_;
};

TEST_F(MemoryMoverTest, CopiesAndVerifiesOnItsThreadAndReportsOnTheExecutor) {
  EventLoop loop("core", 100, clock_);
  SealedSlot slot(1), bad(2);
  bad.bytes[100] ^= std::byte{1};
  std::vector<std::byte> out(slot.bytes.size()), garbage(slot.bytes.size());
  MemoryMover mover({}, loop, clock_);
  loop.RunAndWait([&] {
    loop_thread_ = std::this_thread::get_id();
    mover.Copy(out.data(), slot.bytes.data(), slot.identity, absl::InfiniteFuture(), Record());
    mover.Verify(slot.bytes.data(), slot.identity, absl::InfiniteFuture(), Record());
    mover.Copy(garbage.data(), bad.bytes.data(), bad.identity, absl::InfiniteFuture(), Record());
    mover.Verify(bad.bytes.data(), bad.identity, absl::InfiniteFuture(), Record());
    EXPECT_TRUE(results_.empty());
  });
  RunUntil(loop, 4);
  loop.RunAndWait([&] { mover.Stop(); });
  EXPECT_EQ(out, slot.bytes);
  EXPECT_TRUE(results_[0].ok() && results_[1].ok());
  EXPECT_TRUE(absl::IsDataLoss(results_[2]) && absl::IsDataLoss(results_[3]));
  EXPECT_EQ(mover.in_flight(), 0u);
}

TEST_F(MemoryMoverTest, BeyondItsBoundOperationsAreRefusedButStillReported) {
  HeldClock held;
  ManualExecutor executor(clock_);
  SealedSlot slot(1);
  MemoryMover mover({.inflight_max = 2}, executor, held);
  for (int i = 0; i < 4; ++i) {
    mover.Verify(slot.bytes.data(), slot.identity, absl::InfiniteFuture(), Record());
  }
  EXPECT_TRUE(results_.empty()) << "done must not run inside the call";
  executor.RunUntilIdle();
  ASSERT_EQ(results_.size(), 2u);
  EXPECT_TRUE(absl::IsResourceExhausted(results_[0]) && absl::IsResourceExhausted(results_[1]));
  EXPECT_EQ(mover.in_flight(), 2u);
  held.Go();
  mover.Stop();
  EXPECT_EQ(results_.size(), 4u);
  EXPECT_EQ(mover.in_flight(), 0u);
}

TEST_F(MemoryMoverTest, WaitingOperationsExpireWithoutTouchingMemory) {
  HeldClock held;
  EventLoop loop("core", 100, clock_);
  SealedSlot slot(1);
  std::vector<std::byte> out(slot.bytes.size(), std::byte{0x55});
  const std::vector<std::byte> untouched = out;
  MemoryMover mover({}, loop, held);
  held.now = absl::UnixEpoch() + absl::Seconds(2);
  held.Go();
  loop.RunAndWait([&] {
    mover.Copy(out.data(), slot.bytes.data(), slot.identity, absl::UnixEpoch() + absl::Seconds(2),
               Record());
    mover.Verify(slot.bytes.data(), slot.identity, absl::UnixEpoch() + absl::Seconds(3), Record());
  });
  RunUntil(loop, 2);
  loop.RunAndWait([&] { mover.Stop(); });
  EXPECT_TRUE(absl::IsDeadlineExceeded(results_[0])) << results_[0];
  EXPECT_TRUE(results_[1].ok()) << results_[1];
  EXPECT_EQ(out, untouched);
}

TEST_F(MemoryMoverTest, StopReportsEverythingExactlyOnceBeforeItReturns) {
  HeldClock held;
  ManualExecutor executor(clock_);
  SealedSlot slot(1);
  MemoryMover mover({}, executor, held);
  for (int i = 0; i < 5; ++i) {
    mover.Verify(slot.bytes.data(), slot.identity, absl::InfiniteFuture(), Record());
  }
  held.WaitUntilAsked();
  held.Go();
  mover.Stop();
  ASSERT_EQ(results_.size(), 5u);
  for (const absl::Status& status : results_) {
    EXPECT_TRUE(status.ok() || absl::IsUnavailable(status)) << status;
  }
  executor.RunUntilIdle();
  mover.Stop();
  EXPECT_EQ(results_.size(), 5u);
  mover.Verify(slot.bytes.data(), slot.identity, absl::InfiniteFuture(), Record());
  EXPECT_EQ(results_.size(), 5u);
  executor.RunUntilIdle();
  ASSERT_EQ(results_.size(), 6u);
  EXPECT_TRUE(absl::IsUnavailable(results_[5]));
}

TEST_F(MemoryMoverTest, PostedCompletionsMayOutliveTheMover) {
  ManualExecutor executor(clock_);
  {
    MemoryMover mover({}, executor, clock_);
    mover.Fail(absl::AbortedError("refused"), Record());
  }
  EXPECT_EQ(results_.size(), 1u);
  executor.RunUntilIdle();
  EXPECT_EQ(results_.size(), 1u);
}

TEST_F(MemoryMoverTest, ManyThreadsReportEachOfManyOperationsOnce) {
  EventLoop loop("core", 100, clock_);
  SealedSlot slot(3);
  constexpr int kOperations = 2000;
  std::vector<std::vector<std::byte>> outs(16, std::vector<std::byte>(slot.bytes.size()));
  std::vector<int> reported(kOperations, 0);
  int accepted = 0;
  MemoryMover mover({.num_threads = 3, .inflight_max = outs.size()}, loop, clock_);
  for (int next = 0; next < kOperations;) {
    loop.RunAndWait([&] {
      while (next < kOperations && mover.in_flight() < mover.inflight_max()) {
        const int i = next++;
        mover.Copy(outs[i % outs.size()].data(), slot.bytes.data(), slot.identity,
                   absl::InfiniteFuture(), [&, i](absl::Status status) {
                     ++reported[i];
                     accepted += status.ok() ? 1 : 0;
                   });
      }
    });
  }
  loop.RunAndWait([&] { mover.Stop(); });
  for (int count : reported) ASSERT_EQ(count, 1);
  EXPECT_GE(accepted, kOperations - static_cast<int>(outs.size()));
}

}  // namespace
}  // namespace kvstore::transfer
