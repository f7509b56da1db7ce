#include "kvstore/policy/leaf_lru.h"

#include <gtest/gtest.h>

#include <list>
#include <random>
#include <vector>

namespace kvstore::policy {
namespace {

constexpr PoolId kPool{1};
constexpr auto kAny = [](uint32_t) { return true; };

TEST(LeafLru, VictimIsTheOldest) {
  LeafLru lru;
  for (uint32_t n : {5, 6, 7}) lru.InsertNewest(kPool, n);
  lru.Touch(kPool, 5);
  EXPECT_EQ(lru.Victim(kPool, 10, kAny), 6u);
}

TEST(LeafLru, SkipsWhatCannotBeEvictedAndMakesItNewest) {
  LeafLru lru;
  for (uint32_t n : {1, 2, 3}) lru.InsertNewest(kPool, n);
  EXPECT_EQ(lru.Victim(kPool, 10, [](uint32_t n) { return n != 1; }), 2u);
  lru.Remove(kPool, 2);
  EXPECT_EQ(lru.Victim(kPool, 10, kAny), 3u);
  lru.Remove(kPool, 3);
  EXPECT_EQ(lru.Victim(kPool, 10, kAny), 1u);
}

TEST(LeafLru, ScanIsBounded) {
  LeafLru lru;
  for (uint32_t n = 0; n < 100; ++n) lru.InsertNewest(kPool, n);
  uint32_t looked_at = 0;
  EXPECT_EQ(lru.Victim(kPool, 16, [&](uint32_t) { return ++looked_at, false; }), std::nullopt);
  EXPECT_EQ(looked_at, 16u);
}

TEST(LeafLru, ALateNodeEntersBehindTheOlderOnes) {
  LeafLru lru;
  for (uint32_t n : {10, 20, 30, 40}) lru.InsertNewest(kPool, n);
  auto older_than = [](uint32_t age) { return [age](uint32_t other) { return other < age; }; };
  lru.InsertByAge(kPool, 25, 64, older_than(25));
  lru.InsertByAge(kPool, 5, 64, older_than(5));
  lru.InsertByAge(kPool, 50, 64, older_than(50));
  lru.InsertByAge(kPool, 35, 2, older_than(35));  // too far to look: the newest
  std::vector<uint32_t> order;
  for (uint32_t n = lru.Oldest(kPool); n != LeafLru::kNone; n = lru.NextNewer(n))
    order.push_back(n);
  EXPECT_EQ(order, (std::vector<uint32_t>{5, 10, 20, 25, 30, 40, 50, 35}));
}

TEST(LeafLru, PoolsHaveTheirOwnOrder) {
  LeafLru lru;
  lru.InsertNewest(kPool, 1);
  lru.InsertNewest(PoolId(2), 2);
  EXPECT_EQ(lru.Victim(PoolId(2), 10, kAny), 2u);
  EXPECT_EQ(lru.Victim(PoolId(3), 10, kAny), std::nullopt);
}

TEST(LeafLru, AgreesWithAListUnderRandomOperations) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  LeafLru lru;
  std::list<uint32_t> reference;  // newest first
  std::vector<bool> present(64);
  for (int step = 0; step < 20'000; ++step) {
    const uint32_t n = random() % 64;
    if (!present[n]) {
      if (random() % 2) {
        lru.InsertNewest(kPool, n);
        reference.push_front(n);
      } else {
        lru.InsertOldest(kPool, n);
        reference.push_back(n);
      }
      present[n] = true;
    } else if (random() % 2) {
      lru.Touch(kPool, n);
      reference.remove(n);
      reference.push_front(n);
    } else {
      lru.Remove(kPool, n);
      reference.remove(n);
      present[n] = false;
    }
    ASSERT_EQ(lru.size(), reference.size());
    ASSERT_EQ(lru.Oldest(kPool), reference.empty() ? LeafLru::kNone : reference.back());
  }
}

}  // namespace
}  // namespace kvstore::policy
