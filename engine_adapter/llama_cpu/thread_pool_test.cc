#include "engine_adapter/llama_cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

namespace kvstore::engine {
namespace {

TEST(ThreadPool, RunsEveryPieceExactlyOnce) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int64_t pieces : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> counts(static_cast<size_t>(pieces));
      pool.Run(pieces, [&](int64_t piece, int) { ++counts[static_cast<size_t>(piece)]; });
      for (const auto& count : counts) EXPECT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPool, ResultsOfALaunchAreVisibleAfterIt) {
  ThreadPool pool(3);
  std::vector<int64_t> values(64);
  for (int64_t round = 0; round < 5000; ++round) {
    pool.Run(64, [&](int64_t piece, int) { values[static_cast<size_t>(piece)] += piece; });
  }
  for (int64_t piece = 0; piece < 64; ++piece) {
    EXPECT_EQ(values[static_cast<size_t>(piece)], piece * 5000);
  }
}

TEST(ThreadPool, ThreadNumbersStayInRange) {
  ThreadPool pool(4);
  std::atomic<bool> in_range{true};
  pool.Run(500, [&](int64_t, int thread) {
    if (thread < 0 || thread >= 4) in_range = false;
  });
  EXPECT_TRUE(in_range.load());
}

}  // namespace
}  // namespace kvstore::engine
