// Products of real sizes: a row has the same bits at every number of rows. Small models do not show
// it: for them the library never wants to split sums.
#include "engine_adapter/llama_cuda/gemm_plans.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "engine_adapter/llama_cuda/device_memory.h"

namespace kvstore::engine {
namespace {

constexpr int64_t kRowsMax = 1024;

std::vector<__nv_bfloat16> Random(int64_t count, uint64_t seed) {
  std::vector<__nv_bfloat16> values(static_cast<size_t>(count));
  for (__nv_bfloat16& value : values) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    value = __float2bfloat16_rn(static_cast<float>(seed >> 40) * 0x1p-23f - 1.0f);
  }
  return values;
}

class GemmPlansTest : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
      GTEST_SKIP() << "no CUDA device";
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
    auto lt = LoadedCublasLt::Load();
    ASSERT_TRUE(lt.ok()) << lt.status();
    lt_ = *lt;
    workspace_ = Allocate(size_t{32} << 20);
    library_ = {.lt = &lt_,
                .workspace = workspace_.data(),
                .workspace_bytes = workspace_.size(),
                .stream = stream_};
    ASSERT_EQ(lt_.Create(&library_.handle), CUBLAS_STATUS_SUCCESS);
  }
  void TearDown() override {
    if (stream_ == nullptr) return;
    EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
  }

  static DeviceMemory Allocate(size_t num_bytes) {
    auto memory = DeviceMemory::Allocate(num_bytes);
    EXPECT_TRUE(memory.ok()) << memory.status();
    return memory.ok() ? *std::move(memory) : DeviceMemory();
  }
  static DeviceMemory Upload(const std::vector<__nv_bfloat16>& values) {
    DeviceMemory memory = Allocate(values.size() * 2);
    EXPECT_EQ(cudaMemcpy(memory.data(), values.data(), values.size() * 2, cudaMemcpyHostToDevice),
              cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return memory;
  }

  cudaStream_t stream_ = nullptr;
  LoadedCublasLt lt_;
  DeviceMemory workspace_;
  GemmPlans::Library library_;
};

TEST_F(GemmPlansTest, ARowHasTheSameBitsAtEveryNumberOfRows) {
  struct Case {
    GemmShape shape;
    const char* name;
  };
  for (const Case& c :
       {Case{{.n = 4096, .k = 14336, .output = GemmShape::Output::kBf16AddedTo}, "down"},
        Case{{.n = 4096, .k = 4096, .output = GemmShape::Output::kBf16AddedTo}, "o"},
        Case{{.n = 1152, .k = 896, .has_bias = true}, "qkv of a small model"}}) {
    SCOPED_TRACE(c.name);
    const auto [n, k] = std::pair(c.shape.n, c.shape.k);
    const std::vector<__nv_bfloat16> x = Random((kRowsMax + 128) * k, 1), w = Random(n * k, 2);
    const std::vector<__nv_bfloat16> bias = Random(n, 3), before = Random((kRowsMax + 128) * n, 4);
    const DeviceMemory scratch = Upload(x), device_w = Upload(w), device_bias = Upload(bias),
                       out = Upload(before);
    auto plans = GemmPlans::Create(library_, c.shape, kRowsMax,
                                   {.x = scratch.data<__nv_bfloat16>(),
                                    .bias = device_bias.data<__nv_bfloat16>(),
                                    .out = out.data()},
                                   {device_w.data<__nv_bfloat16>()});
    ASSERT_TRUE(plans.ok()) << plans.status();
    const DeviceMemory device_x = Upload(x);  // the scratch was written over

    // The last rows of the input, in passes of all sizes.
    const auto run = [&](int64_t first, int64_t rows) {
      const DeviceMemory result = Upload(before);
      EXPECT_TRUE(plans
                      ->Run(rows,
                            {.x = device_x.data<__nv_bfloat16>() + first * k,
                             .w = device_w.data<__nv_bfloat16>(),
                             .bias = device_bias.data<__nv_bfloat16>(),
                             .out = result.data<__nv_bfloat16>() + first * n},
                            stream_)
                      .ok());
      EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      std::vector<__nv_bfloat16> values(static_cast<size_t>(rows * n));
      EXPECT_EQ(cudaMemcpy(values.data(), result.data<__nv_bfloat16>() + first * n,
                           values.size() * 2, cudaMemcpyDeviceToHost),
                cudaSuccess);
      return values;
    };
    const std::vector<__nv_bfloat16> whole = run(0, kRowsMax);
    for (const int64_t rows :
         {1, 15, 16, 17, 40, 64, 65, 100, 128, 129, 200, 256, 300, 512, 700, 896}) {
      const int64_t first = kRowsMax - rows;
      const std::vector<__nv_bfloat16> part = run(first, rows);
      EXPECT_EQ(std::memcmp(part.data(), whole.data() + first * n, part.size() * 2), 0)
          << rows << " rows";
    }
    // And the values are right: one element of the first row by hand.
    for (const int64_t column : {int64_t{0}, n / 2, n - 1}) {
      double sum = c.shape.has_bias ? __bfloat162float(bias[static_cast<size_t>(column)]) : 0.0;
      if (c.shape.output == GemmShape::Output::kBf16AddedTo)
        sum += __bfloat162float(before[static_cast<size_t>(column)]);
      for (int64_t i = 0; i < k; ++i) {
        sum += static_cast<double>(__bfloat162float(x[static_cast<size_t>(i)])) *
               static_cast<double>(__bfloat162float(w[static_cast<size_t>(column * k + i)]));
      }
      EXPECT_NEAR(__bfloat162float(whole[static_cast<size_t>(column)]), sum,
                  0.01 * std::abs(sum) + 0.01);
    }
  }
}

}  // namespace
}  // namespace kvstore::engine
