#include "kernels/sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <vector>

namespace kvstore::kernels {
namespace {

std::map<int64_t, int> Draw(const std::vector<float>& logits, const SamplingOptions& options,
                            uint64_t seed, int draws) {
  std::vector<SampleCandidate> scratch(logits.size());
  SampleGenerator generator(seed);
  std::map<int64_t, int> counts;
  for (int i = 0; i < draws; ++i) {
    ++counts[SampleToken(logits.data(), static_cast<int64_t>(logits.size()), options, generator,
                         scratch.data())];
  }
  return counts;
}

TEST(ArgMax, TakesTheFirstOfEqualsAndPassesOverNan) {
  const float logits[] = {NAN, -3.0f, 2.0f, 2.0f, NAN};
  EXPECT_EQ(ArgMax(logits, 5), 2);
  const float low[] = {NAN, -INFINITY, -INFINITY};
  EXPECT_EQ(ArgMax(low, 3), 1);
}

TEST(SampleToken, ZeroTemperatureIsGreedy) {
  EXPECT_THAT(Draw({0.1f, 5.0f, 4.9f}, {.temperature = 0.0f}, 1, 50),
              testing::ElementsAre(testing::Pair(1, 50)));
}

TEST(SampleToken, SameSeedSameTokens) {
  const std::vector<float> logits = {1.0f, 1.1f, 0.9f, 1.0f};
  EXPECT_EQ(Draw(logits, {.temperature = 1.0f}, 7, 200),
            Draw(logits, {.temperature = 1.0f}, 7, 200));
  EXPECT_NE(Draw(logits, {.temperature = 1.0f}, 7, 200),
            Draw(logits, {.temperature = 1.0f}, 8, 200));
}

TEST(SampleToken, FollowsTheDistribution) {
  // Probabilities 0.5, 0.3, 0.2; 20,000 draws: four standard deviations are 0.015.
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  const std::map<int64_t, int> counts = Draw(logits, {.temperature = 1.0f}, 3, 20000);
  EXPECT_NEAR(counts.at(0) / 20000.0, 0.5, 0.015);
  EXPECT_NEAR(counts.at(1) / 20000.0, 0.3, 0.015);
  EXPECT_NEAR(counts.at(2) / 20000.0, 0.2, 0.015);
}

TEST(SampleToken, TopKKeepsTheMostLikely) {
  const std::map<int64_t, int> counts =
      Draw({1.0f, 3.0f, 2.0f, 3.0f, 0.0f}, {.temperature = 5.0f, .top_k = 2}, 3, 500);
  EXPECT_THAT(counts, testing::ElementsAre(testing::Key(1), testing::Key(3)));
}

TEST(SampleToken, TopPKeepsTheFewestThatReachIt) {
  const std::vector<float> logits = {std::log(0.2f), std::log(0.5f), std::log(0.3f)};
  EXPECT_THAT(Draw(logits, {.temperature = 1.0f, .top_p = 0.79f}, 3, 500),
              testing::ElementsAre(testing::Key(1), testing::Key(2)));
  EXPECT_THAT(Draw(logits, {.temperature = 1.0f, .top_p = 0.4f}, 3, 500),
              testing::ElementsAre(testing::Key(1)));
}

}  // namespace
}  // namespace kvstore::kernels
