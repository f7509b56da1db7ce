#include "kernels/experts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu_kernels.h"

namespace kvstore::kernels {
namespace {

using testing::ElementsAre;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<const CpuKernels*> RunnableKernels() {
  std::vector<const CpuKernels*> tables;
  for (const CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (const CpuKernels* table = KernelsFor(isa)) tables.push_back(table);
  }
  return tables;
}

class Experts : public testing::TestWithParam<const CpuKernels*> {};
INSTANTIATE_TEST_SUITE_P(Kernels, Experts, testing::ValuesIn(RunnableKernels()),
                         [](const auto& param) { return std::string(param.param->name); });

struct Routing {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

Routing Route(const CpuKernels& kernels, const std::vector<float>& logits, int64_t top_k,
              bool is_normalized = false, float scale = 1.0f) {
  Routing out{std::vector<int32_t>(static_cast<size_t>(top_k), -7),
              std::vector<float>(static_cast<size_t>(top_k))};
  kernels.route({.logits = logits.data(),
                 .logits_stride = static_cast<int64_t>(logits.size()),
                 .num_experts = static_cast<int64_t>(logits.size()),
                 .top_k = top_k,
                 .is_normalized = is_normalized,
                 .scale = scale,
                 .experts = out.experts.data(),
                 .weights = out.weights.data()},
                0, 1);
  return out;
}

std::vector<float> RandomFloats(size_t n, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<float> values(n);
  for (float& value : values) value = normal(generator);
  return values;
}

TEST_P(Experts, RouteChoosesTheLargestInAscendingOrder) {
  EXPECT_THAT(Route(*GetParam(), {1, 5, 2, 4, 3}, 3).experts, ElementsAre(1, 3, 4));
  EXPECT_THAT(Route(*GetParam(), {1, 5, 2, 4, 3}, 5).experts, ElementsAre(0, 1, 2, 3, 4));
}

TEST_P(Experts, RouteTakesTheLowerOfEqualExperts) {
  EXPECT_THAT(Route(*GetParam(), {2, 3, 3, 3, 2}, 2).experts, ElementsAre(1, 2));
  EXPECT_THAT(Route(*GetParam(), {2, 3, 2, 3, 2}, 3).experts, ElementsAre(0, 1, 3));
}

TEST_P(Experts, RouteWeighsBySoftmaxOverAllExperts) {
  for (const size_t count : {1, 7, 16, 64, 130}) {
    const std::vector<float> logits = RandomFloats(count, 3);
    double total = 0;
    for (const float logit : logits) total += std::exp(static_cast<double>(logit));
    const auto top_k = static_cast<int64_t>(count + 1) / 2;
    const Routing plain = Route(*GetParam(), logits, top_k, false, 1.5f);
    const Routing normalized = Route(*GetParam(), logits, top_k, true);
    double chosen = 0;
    for (const int32_t expert : plain.experts) chosen += std::exp(double{logits[expert]});
    for (size_t k = 0; k < plain.experts.size(); ++k) {
      const double exponential = std::exp(double{logits[plain.experts[k]]});
      EXPECT_NEAR(plain.weights[k], 1.5 * exponential / total, 1e-6) << count;
      EXPECT_NEAR(normalized.weights[k], exponential / chosen, 1e-6) << count;
    }
    EXPECT_EQ(normalized.experts, plain.experts);
  }
}

// A model full of NaN must give NaN, not an index outside the table of experts.
TEST_P(Experts, RouteOfNanStaysInsideAndShows) {
  const Routing some = Route(*GetParam(), {kNan, 1, kNan, 2}, 3);
  EXPECT_THAT(some.experts, ElementsAre(0, 1, 3));
  EXPECT_THAT(some.weights, testing::Each(testing::IsNan()));
  const Routing all = Route(*GetParam(), {kNan, kNan, kNan}, 2, true);
  EXPECT_THAT(all.experts, ElementsAre(0, 1));
  EXPECT_THAT(all.weights, testing::Each(testing::IsNan()));
}

TEST_P(Experts, CombineIsOneChainByAscendingExpertThenShared) {
  constexpr int64_t kN = 21, kRows = 3, kTopK = 4;
  const std::vector<float> x = RandomFloats(kRows * kTopK * kN, 1), shared = RandomFloats(63, 2),
                           weights = RandomFloats(kRows * kTopK, 3);
  std::vector<int32_t> slots(kRows * kTopK);
  std::iota(slots.rbegin(), slots.rend(), 0);
  for (const bool has_shared : {false, true}) {
    std::vector<float> out(kRows * kN), expected(kRows * kN);
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t i = 0; i < kN; ++i) {
        float sum = 0;
        for (int64_t k = 0; k < kTopK; ++k) {
          const int64_t at = row * kTopK + k;
          sum = std::fmaf(weights[at], x[slots[at] * kN + i], sum);
        }
        expected[row * kN + i] = has_shared ? sum + shared[row * kN + i] : sum;
      }
    }
    GetParam()->combine({.x = x.data(),
                         .x_stride = kN,
                         .slots = slots.data(),
                         .weights = weights.data(),
                         .top_k = kTopK,
                         .shared = has_shared ? shared.data() : nullptr,
                         .shared_stride = kN,
                         .out = out.data(),
                         .out_stride = kN,
                         .n = kN},
                        0, kRows);
    EXPECT_EQ(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)), 0);
  }
}

TEST_P(Experts, RouteGivesTheBitsOfTheScalarVariant) {
  for (const size_t count : {5, 64, 131}) {
    const std::vector<float> logits = RandomFloats(count, 9);
    const Routing mine = Route(*GetParam(), logits, 5, true, 2.5f);
    const Routing scalar = Route(*KernelsFor(CpuIsa::kScalar), logits, 5, true, 2.5f);
    EXPECT_EQ(mine.experts, scalar.experts);
    EXPECT_EQ(std::memcmp(mine.weights.data(), scalar.weights.data(), 5 * sizeof(float)), 0);
  }
}

}  // namespace
}  // namespace kvstore::kernels
