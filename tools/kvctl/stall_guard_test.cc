#include "tools/kvctl/stall_guard.h"

#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"

namespace kvstore::kvctl {
namespace {

TEST(StallGuard, FiresOnceWhenNothingHappens) {
  absl::Notification fired;
  StallGuard guard(absl::Milliseconds(5),
                   [&] { fired.Notify(); });  // a second Notify() would abort
  EXPECT_TRUE(fired.WaitForNotificationWithTimeout(absl::Seconds(10)));
  EXPECT_TRUE(guard.has_fired());
}

TEST(StallGuard, DoesNotFireWhenTheWorkEndsInTime) {
  bool fired = false;
  {
    StallGuard guard(absl::Seconds(60), [&] { fired = true; });
    EXPECT_FALSE(guard.has_fired());
  }
  EXPECT_FALSE(fired);
}

TEST(StallGuard, ProgressPutsTheEndOff) {
  absl::Notification fired;
  StallGuard guard(absl::Seconds(2), [&] { fired.Notify(); });
  absl::SleepFor(absl::Milliseconds(100));  // far less, also on a busy machine
  const absl::Time progress = absl::Now();
  guard.Progress();
  fired.WaitForNotification();
  EXPECT_GE(absl::Now() - progress, absl::Milliseconds(1990));
}

}  // namespace
}  // namespace kvstore::kvctl
