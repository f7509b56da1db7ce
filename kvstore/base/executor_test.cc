#include "kvstore/base/executor.h"

#include <gtest/gtest.h>

#include <vector>

#include "absl/synchronization/notification.h"

namespace kvstore {
namespace {

TEST(EventLoop, RunsTasksInOrderAndAllOfThemBeforeStopReturns) {
  MonotonicClock clock;
  std::vector<int> order;
  EventLoop loop("test", 1000, clock);
  for (int i = 0; i < 100; ++i) loop.Post([&order, i] { order.push_back(i); });
  loop.Stop();
  ASSERT_EQ(order.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[i], i);
}

TEST(EventLoop, TryPostRefusesBeyondItsBound) {
  MonotonicClock clock;
  EventLoop loop("test", 2, clock);
  absl::Notification go, blocked;
  loop.Post([&] {
    blocked.Notify();
    go.WaitForNotification();
  });
  blocked.WaitForNotification();
  EXPECT_TRUE(loop.TryPost([] {}));
  EXPECT_TRUE(loop.TryPost([] {}));
  EXPECT_FALSE(loop.TryPost([] {}));
  go.Notify();
}

TEST(EventLoop, RunsTimersWhenTheyAreDue) {
  MonotonicClock clock;
  EventLoop loop("test", 10, clock);
  absl::Notification late;
  std::vector<int> order;
  loop.RunAndWait([&] {
    loop.PostAt(clock.Now() + absl::Milliseconds(20), [&] {
      order.push_back(2);
      late.Notify();
    });
    loop.PostAt(clock.Now() + absl::Milliseconds(5), [&] { order.push_back(1); });
  });
  ASSERT_TRUE(late.WaitForNotificationWithTimeout(absl::Seconds(10)));
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

TEST(ManualExecutor, RunsTimersOnlyAfterTheClockPassedThem) {
  ManualClock clock;
  ManualExecutor executor(clock);
  int ran = 0;
  executor.PostAt(clock.Now() + absl::Seconds(1), [&] { ++ran; });
  executor.RunUntilIdle();
  EXPECT_EQ(ran, 0);
  clock.Advance(absl::Seconds(1));
  executor.RunUntilIdle();
  EXPECT_EQ(ran, 1);
}

}  // namespace
}  // namespace kvstore
