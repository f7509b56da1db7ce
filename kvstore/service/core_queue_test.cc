#include "kvstore/service/core_queue.h"

#include <gtest/gtest.h>

#include <string>

#include "kvstore/base/clock.h"

namespace kvstore::service {
namespace {

class CoreQueueTest : public ::testing::Test {
 protected:
  Task Note(const std::string& name) {
    return [this, name] { ran_ += name; };
  }
  ManualClock clock_;
  ManualExecutor core_{clock_};
  std::string ran_;
};

TEST_F(CoreQueueTest, TheFirstCallOfATenantGoesBeforeAnothersQueue) {
  CoreQueue queue(core_, 100);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(queue.TryPost("flood", 0, Note("f")));
  ASSERT_TRUE(queue.TryPost("victim", 0, Note("v")));
  core_.RunUntilIdle();
  EXPECT_EQ(ran_.size(), 6u);
  EXPECT_LE(ran_.find('v'), 1u) << ran_;
}

TEST_F(CoreQueueTest, TurnsAreByBytesNotByCalls) {
  CoreQueue queue(core_, 100);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(queue.TryPost("large", 16 << 10, Note("l")));
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(queue.TryPost("small", 64, Note("s")));
  core_.RunUntilIdle();
  EXPECT_LE(ran_.rfind('s'), 4u) << ran_;
}

TEST_F(CoreQueueTest, CallsOfOneTenantKeepTheirOrder) {
  CoreQueue queue(core_, 100);
  for (const char* name : {"1", "2", "3"}) ASSERT_TRUE(queue.TryPost("tenant", 9999, Note(name)));
  core_.RunUntilIdle();
  EXPECT_EQ(ran_, "123");
}

TEST_F(CoreQueueTest, ATenantAloneLeavesRoomForAnother) {
  CoreQueue queue(core_, 16);
  int taken = 0;
  while (queue.TryPost("flood", 0, Note("f"))) ++taken;
  EXPECT_EQ(taken, 8);
  EXPECT_TRUE(queue.TryPost("victim", 0, Note("v")));
  core_.RunUntilIdle();
  EXPECT_TRUE(queue.TryPost("flood", 0, Note("f")));
}

}  // namespace
}  // namespace kvstore::service
