#include "kvstore/metrics/snapshot_cache.h"

#include <gtest/gtest.h>

#include <vector>

namespace kvstore::metrics {
namespace {

MetricsSnapshot WithBlocks(size_t blocks) {
  MetricsSnapshot snapshot;
  snapshot.store.blocks = blocks;
  return snapshot;
}

TEST(SnapshotCache, AsksOnceForManyThatComeTogether) {
  ManualClock clock;
  size_t asked = 0;
  SnapshotCache cache(
      [&](const SnapshotCache::Answer& answer) {
        answer(WithBlocks(++asked));
        return true;
      },
      clock);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(cache.Get()->store.blocks, 1u);
  clock.Advance(SnapshotCache::kKeptFor);
  EXPECT_EQ(cache.Get()->store.blocks, 2u);
  EXPECT_EQ(asked, 2u);
}

TEST(SnapshotCache, ACoreThatTakesNoQuestionsIsAnError) {
  ManualClock clock;
  SnapshotCache cache([](const SnapshotCache::Answer&) { return false; }, clock);
  EXPECT_EQ(cache.Get().status().code(), absl::StatusCode::kUnavailable);
}

TEST(SnapshotCache, ACoreThatHangsIsAskedOnceAndItsLateAnswerIsNotShown) {
  ManualClock clock;
  std::vector<SnapshotCache::Answer> waiting;
  SnapshotCache cache(
      [&](const SnapshotCache::Answer& answer) {
        waiting.push_back(answer);
        return true;
      },
      clock);
  EXPECT_EQ(cache.Get().status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(cache.Get().status().code(), absl::StatusCode::kDeadlineExceeded);
  ASSERT_EQ(waiting.size(), 1u) << "questions pile up on a core that hangs";
  waiting[0](WithBlocks(1));
  EXPECT_EQ(cache.Get().status().code(), absl::StatusCode::kDeadlineExceeded)
      << "an answer of unknown age was shown";
  EXPECT_EQ(waiting.size(), 2u);
}

}  // namespace
}  // namespace kvstore::metrics
