#include "kvstore/policy/fair_queue.h"

#include <gtest/gtest.h>

#include <map>
#include <vector>

namespace kvstore::policy {
namespace {

constexpr auto kAnyone = [](uint32_t) { return true; };

FairQueue<int> Make(size_t items_max = 1000, size_t items_per_tenant_max = 1000) {
  return FairQueue<int>({.items_max = items_max, .items_per_tenant_max = items_per_tenant_max});
}

TEST(FairQueue, OneTenantIsServedInOrder) {
  FairQueue<int> queue = Make();
  for (int i = 0; i < 5; ++i) queue.Push(7, 100, i);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(queue.Pop(kAnyone)->second, i);
  EXPECT_FALSE(queue.Pop(kAnyone));
}

TEST(FairQueue, ALateTenantDoesNotWaitBehindAFlood) {
  FairQueue<int> queue = Make();
  for (int i = 0; i < 400; ++i) queue.Push(1, 100, i);
  for (int i = 0; i < 50; ++i) queue.Pop(kAnyone);
  queue.Push(2, 100, -1);
  int waited = 0;
  while (queue.Pop(kAnyone)->first != 2) ++waited;
  EXPECT_LE(waited, 1);
}

TEST(FairQueue, TenantsGetEqualBytesWhateverTheirPageSize) {
  FairQueue<int> queue = Make();
  for (int i = 0; i < 400; ++i) queue.Push(1, 100, i);
  for (int i = 0; i < 100; ++i) queue.Push(2, 400, i);
  std::map<uint32_t, int> served;
  for (int i = 0; i < 250; ++i) ++served[queue.Pop(kAnyone)->first];
  EXPECT_NEAR(served[1], 200, 4);
  EXPECT_NEAR(served[2], 50, 2);
}

TEST(FairQueue, WhoWasIdleGetsNoCreditForIt) {
  FairQueue<int> queue = Make();
  queue.Push(2, 100, 0);
  queue.Pop(kAnyone);
  for (int i = 0; i < 300; ++i) queue.Push(1, 100, i);
  for (int i = 0; i < 200; ++i) queue.Pop(kAnyone);
  for (int i = 0; i < 100; ++i) queue.Push(2, 100, i);
  std::map<uint32_t, int> served;
  for (int i = 0; i < 20; ++i) ++served[queue.Pop(kAnyone)->first];
  EXPECT_GE(served[1], 9) << "the idle one took everything";
}

TEST(FairQueue, SkipsWhoMayNotBeServedNow) {
  FairQueue<int> queue = Make();
  queue.Push(1, 100, 10);
  queue.Push(2, 100, 20);
  EXPECT_EQ(queue.Pop([](uint32_t tenant) { return tenant != 1; })->second, 20);
  EXPECT_FALSE(queue.Pop([](uint32_t tenant) { return tenant != 1; }));
  EXPECT_EQ(queue.Pop(kAnyone)->second, 10);
}

TEST(FairQueue, AFloodLeavesRoomForOthers) {
  FairQueue<int> queue = Make(100, 80);
  int pushed = 0;
  for (; queue.HasRoomFor(1); ++pushed) queue.Push(1, 1, pushed);
  EXPECT_EQ(pushed, 50);
  for (uint32_t tenant = 2; tenant < 6; ++tenant) {
    EXPECT_TRUE(queue.HasRoomFor(tenant)) << tenant;
    while (queue.HasRoomFor(tenant)) queue.Push(tenant, 1, 0);
  }
  EXPECT_LE(queue.size(), 100u);
}

}  // namespace
}  // namespace kvstore::policy
