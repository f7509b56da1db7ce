// What the kernel tests need of a device: memory that starts as NaN, random bf16 values, and a
// visible skip where there is no such device.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvstore::kernels::cuda {

using Bf16 = __nv_bfloat16;

// Values of about normal distribution, a function of seed and index alone.
static __global__ void FillRandomKernel(Bf16* to, int64_t count, uint32_t seed, float deviation) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  uint64_t z = (static_cast<uint64_t>(seed) << 40) + static_cast<uint64_t>(i);
  float sum = 0.0f;
  for (int k = 0; k < 4; ++k) {
    z += 0x9e3779b97f4a7c15u;
    uint64_t x = z;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    sum += static_cast<float>((x ^ (x >> 31)) >> 40) * 0x1p-24f - 0.5f;
  }
  to[i] = __float2bfloat16_rn(sum * 1.7320508f * deviation);  // four uniforms: variance 1/3
}

class DeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
      GTEST_SKIP() << "no CUDA device";
    cudaDeviceProp properties;
    ASSERT_EQ(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
    capability_ = properties.major * 10 + properties.minor;
    multiprocessors_ = properties.multiProcessorCount;
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  void TearDown() override {
    if (stream_ == nullptr) return;
    Wait();
    for (void* memory : memory_) EXPECT_EQ(cudaFree(memory), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
  }

  void Wait() { ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess); }

  // Every byte 0xff: bf16 and float32 NaNs.
  template <typename T>
  T* Device(size_t count) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, count * sizeof(T) + 256), cudaSuccess);
    EXPECT_EQ(cudaMemset(memory, 0xff, count * sizeof(T) + 256), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    memory_.push_back(memory);
    return static_cast<T*>(memory);
  }
  template <typename T>
  T* Upload(const std::vector<T>& values) {
    T* to = Device<T>(values.size());
    EXPECT_EQ(cudaMemcpy(to, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
    // From pageable memory the call returns before the bytes are there, and stream_ does not wait.
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return to;
  }
  template <typename T>
  std::vector<T> Download(const T* from, size_t count) {
    std::vector<T> values(count);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(values.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return values;
  }
  void FillRandom(Bf16* to, int64_t count, uint32_t seed, float deviation = 1.0f) {
    FillRandomKernel<<<static_cast<unsigned>((count + 255) / 256), 256, 0, stream_>>>(
        to, count, seed, deviation);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  }
  Bf16* Random(int64_t count, uint32_t seed, float deviation = 1.0f) {
    Bf16* to = Device<Bf16>(static_cast<size_t>(count));
    FillRandom(to, count, seed, deviation);
    return to;
  }

  cudaStream_t stream_ = nullptr;
  int capability_ = 0;
  int multiprocessors_ = 0;

 private:
  std::vector<void*> memory_;
};

}  // namespace kvstore::kernels::cuda
