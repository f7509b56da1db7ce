// Router, grouping and sum of a mixture of experts against their CPU twins.
#include "kernels/cuda/experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "kernels/cpu_kernels.h"
#include "kernels/cuda/test_device.cuh"

namespace kvstore::kernels::cuda {
namespace {

struct Shape {
  int64_t rows;
  int64_t num_experts;
  int64_t top_k;
};
constexpr Shape kShapes[] = {{1, 1, 1},     {1, 64, 6},   {7, 5, 5},      {9, 33, 32},
                             {300, 128, 8}, {70, 160, 6}, {1000, 1024, 2}};

// Rounded, so that equal logits are frequent.
std::vector<float> RandomLogits(const Shape& shape) {
  std::mt19937 generator(static_cast<uint32_t>(shape.rows));
  std::normal_distribution<float> normal(0.0f, 2.0f);
  std::vector<float> values(static_cast<size_t>(shape.rows * shape.num_experts));
  for (float& value : values) value = std::round(normal(generator) * 16) / 16;
  return values;
}

struct Routing {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

Routing RouteOnCpu(const Shape& shape, const std::vector<float>& logits, bool is_normalized) {
  const auto choices = static_cast<size_t>(shape.rows * shape.top_k);
  Routing out{std::vector<int32_t>(choices), std::vector<float>(choices)};
  BestKernels().route({.logits = logits.data(),
                       .logits_stride = shape.num_experts,
                       .num_experts = shape.num_experts,
                       .top_k = shape.top_k,
                       .is_normalized = is_normalized,
                       .scale = 1.5f,
                       .experts = out.experts.data(),
                       .weights = out.weights.data()},
                      0, shape.rows);
  return out;
}

class ExpertsTest : public DeviceTest {
 protected:
  Routing Route(const Shape& shape, const float* logits, bool is_normalized) {
    const auto choices = static_cast<size_t>(shape.rows * shape.top_k);
    auto* experts = Device<int32_t>(choices);
    auto* weights = Device<float>(choices);
    EXPECT_EQ(LaunchRoute({.logits = logits,
                           .rows = shape.rows,
                           .num_experts = shape.num_experts,
                           .top_k = shape.top_k,
                           .is_normalized = is_normalized,
                           .scale = 1.5f,
                           .experts = experts,
                           .weights = weights},
                          stream_),
              cudaSuccess);
    return {Download(experts, choices), Download(weights, choices)};
  }
};

TEST_F(ExpertsTest, RouteChoosesWhatItsTwinChooses) {
  for (const Shape& shape : kShapes) {
    const std::vector<float> logits = RandomLogits(shape);
    const float* on_device = Upload(logits);
    for (const bool is_normalized : {false, true}) {
      const Routing expected = RouteOnCpu(shape, logits, is_normalized);
      const Routing got = Route(shape, on_device, is_normalized);
      EXPECT_EQ(got.experts, expected.experts) << shape.num_experts;
      for (size_t i = 0; i < got.weights.size(); ++i) {
        ASSERT_NEAR(got.weights[i], expected.weights[i], 1e-5f * expected.weights[i] + 1e-12f);
      }
    }
    // The last row alone.
    const Routing all = Route(shape, on_device, true);
    const Routing one = Route({1, shape.num_experts, shape.top_k},
                              on_device + (shape.rows - 1) * shape.num_experts, true);
    EXPECT_EQ(std::memcmp(one.weights.data(), &all.weights[all.weights.size() - one.weights.size()],
                          one.weights.size() * sizeof(float)),
              0);
  }
}

TEST_F(ExpertsTest, RouteOfNanStaysInsideAndShows) {
  const Shape shape{2, 40, 3};
  const Routing got = Route(shape, Device<float>(80), true);  // memory of NaN
  EXPECT_EQ(got.experts, (std::vector<int32_t>{0, 1, 2, 0, 1, 2}));
  for (const float weight : got.weights) EXPECT_TRUE(std::isnan(weight));
}

TEST_F(ExpertsTest, GroupSortsChoicesByExpertInTheOrderOfRows) {
  for (const Shape& shape : kShapes) {
    const std::vector<int32_t> experts = RouteOnCpu(shape, RandomLogits(shape), false).experts;
    const auto choices = experts.size();
    auto* begins = Device<int32_t>(static_cast<size_t>(shape.num_experts) + 1);
    auto* slots = Device<int32_t>(choices);
    auto* sources = Device<uint32_t>(choices);
    ASSERT_EQ(LaunchGroup({.experts = Upload(experts),
                           .rows = shape.rows,
                           .num_experts = shape.num_experts,
                           .top_k = shape.top_k,
                           .begins = begins,
                           .slots = slots,
                           .sources = sources},
                          stream_),
              cudaSuccess);
    std::vector<size_t> order(choices);
    for (size_t i = 0; i < choices; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return experts[a] < experts[b]; });
    const std::vector<int32_t> got_slots = Download(slots, choices);
    const std::vector<uint32_t> got_sources = Download(sources, choices);
    for (size_t slot = 0; slot < choices; ++slot) {
      ASSERT_EQ(got_slots[order[slot]], static_cast<int32_t>(slot));
      ASSERT_EQ(got_sources[slot], order[slot] / static_cast<size_t>(shape.top_k));
    }
    const auto got_begins = Download(begins, static_cast<size_t>(shape.num_experts) + 1);
    for (int32_t expert = 0; expert <= shape.num_experts; ++expert) {
      ASSERT_EQ(
          got_begins[static_cast<size_t>(expert)],
          std::count_if(experts.begin(), experts.end(), [&](int32_t e) { return e < expert; }));
    }
  }
}

TEST_F(ExpertsTest, CombineGivesTheBitsOfItsTwin) {
  const int64_t rows = 33, top_k = 4, n = 264;
  Bf16* x = Random(rows * top_k * n, 1);
  Bf16* shared = Random(rows * n, 2);
  std::vector<int32_t> slots(rows * top_k);
  std::vector<float> weights(rows * top_k), wide_x(rows * top_k * n), wide_shared(rows * n);
  for (size_t i = 0; i < slots.size(); ++i) {
    slots[i] = static_cast<int32_t>(slots.size() - 1 - i);
    weights[i] = 0.1f + 0.01f * static_cast<float>(i);
  }
  const std::vector<Bf16> host_x = Download(x, wide_x.size());
  const std::vector<Bf16> host_shared = Download(shared, wide_shared.size());
  std::transform(host_x.begin(), host_x.end(), wide_x.begin(), __bfloat162float);
  std::transform(host_shared.begin(), host_shared.end(), wide_shared.begin(), __bfloat162float);
  for (const bool has_shared : {false, true}) {
    Bf16* out = Device<Bf16>(rows * n);
    ASSERT_EQ(LaunchCombine({.x = x,
                             .slots = Upload(slots),
                             .weights = Upload(weights),
                             .shared = has_shared ? shared : nullptr,
                             .out = out,
                             .rows = rows,
                             .top_k = top_k,
                             .n = n},
                            stream_),
              cudaSuccess);
    std::vector<float> expected(wide_shared.size());
    BestKernels().combine({.x = wide_x.data(),
                           .x_stride = n,
                           .slots = slots.data(),
                           .weights = weights.data(),
                           .top_k = top_k,
                           .shared = has_shared ? wide_shared.data() : nullptr,
                           .shared_stride = n,
                           .out = expected.data(),
                           .out_stride = n,
                           .n = n},
                          0, rows);
    const std::vector<Bf16> got = Download(out, rows * n);
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_EQ(__bfloat162float(got[i]), __bfloat162float(__float2bfloat16_rn(expected[i]))) << i;
    }
  }
}

TEST_F(ExpertsTest, RefusesShapesThatItDoesNotCompute) {
  EXPECT_EQ(LaunchRoute({.rows = 1, .num_experts = 1025, .top_k = 1}, stream_),
            cudaErrorInvalidValue);
  EXPECT_EQ(LaunchRoute({.rows = 1, .num_experts = 64, .top_k = 33}, stream_),
            cudaErrorInvalidValue);
  EXPECT_EQ(LaunchRoute({.rows = 1, .num_experts = 4, .top_k = 5}, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchGroup({.rows = 1 << 30, .num_experts = 4, .top_k = 2}, stream_),
            cudaErrorInvalidValue);
  EXPECT_EQ(LaunchCombine({.rows = 1, .top_k = 1, .n = 12}, stream_), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace kvstore::kernels::cuda
