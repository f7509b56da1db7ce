#include "kvstore/base/latency_histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <thread>
#include <vector>

namespace kvstore {
namespace {

TEST(LatencyHistogram, ABoundBelongsToTheBucketBelowIt) {
  LatencyHistogram h;
  for (const int64_t bound : LatencyHistogram::kBoundsNs) {
    h.Record(absl::Nanoseconds(bound));
    h.Record(absl::Nanoseconds(bound + 1));
  }
  const LatencyHistogram::Snapshot s = h.snapshot();
  EXPECT_EQ(s.counts.front(), 1u);
  for (size_t i = 1; i + 1 < s.counts.size(); ++i) EXPECT_EQ(s.counts[i], 2u) << i;
  EXPECT_EQ(s.counts.back(), 1u);
}

TEST(LatencyHistogram, CountAndSumAreThoseOfWhatWasRecorded) {
  LatencyHistogram h;
  h.Record(absl::Microseconds(30));
  h.Record(absl::Seconds(20));
  h.Record(-absl::Seconds(1));
  const LatencyHistogram::Snapshot s = h.snapshot();
  EXPECT_EQ(s.count(), 3u);
  EXPECT_EQ(s.sum_ns, 20'000'030'000u);
  EXPECT_EQ(s.counts[0], 1u);
  EXPECT_EQ(s.counts[2], 1u);
  EXPECT_EQ(s.counts.back(), 1u);
}

TEST(LatencyHistogram, ThreadsLoseNothing) {
  LatencyHistogram h;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&h] {
      for (int i = 0; i < 10'000; ++i) h.Record(absl::Microseconds(i % 100));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(h.snapshot().count(), 40'000u);
}

double CpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

// The bound is loose because the machine may be busy; the figure is what is of interest.
TEST(LatencyHistogram, RecordingIsCheap) {
  LatencyHistogram h;
  constexpr int kRounds = 200'000;
  double best_ns = 1e9;
  for (int attempt = 0; attempt < 20; ++attempt) {
    const double start = CpuSeconds();
    for (int i = 0; i < kRounds; ++i) h.Record(absl::Nanoseconds(int64_t{i} * 1000));
    best_ns = std::min(best_ns, (CpuSeconds() - start) / kRounds * 1e9);
  }
  std::printf("%.1f ns a record\n", best_ns);
  EXPECT_LT(best_ns, 100);
}

}  // namespace
}  // namespace kvstore
