// Device kernels against their CPU twins. Skipped, visibly, where there is no CUDA device.
#include <cuda_runtime_api.h>

#include <cstring>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/page_checksum.h"
#include "kernels/cuda/page_copy.h"
#include "kernels/page_checksum.h"

namespace kvstore::kernels {
namespace {

constexpr uint64_t kSeedStep = 0x9E3779B97F4A7C15U;

std::vector<std::byte> RandomBytes(size_t bytes, uint32_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> out(bytes);
  for (std::byte& b : out) b = static_cast<std::byte>(random());
  return out;
}

class CudaKernels : public testing::Test {
 protected:
  void SetUp() override {
    int num_devices = 0;
    if (cudaGetDeviceCount(&num_devices) != cudaSuccess || num_devices == 0) {
      GTEST_SKIP() << "no CUDA device";
    }
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  void TearDown() override {
    for (void* memory : device_) EXPECT_EQ(cudaFree(memory), cudaSuccess);
    for (void* memory : host_) EXPECT_EQ(cudaFreeHost(memory), cudaSuccess);
    if (stream_ != nullptr) {
      EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
    }
  }
  std::byte* OnDevice(size_t bytes) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, bytes), cudaSuccess);
    device_.push_back(memory);
    return static_cast<std::byte*>(memory);
  }
  template <typename T>
  T* OnHost(size_t count) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMallocHost(&memory, count * sizeof(T)), cudaSuccess);
    host_.push_back(memory);
    return static_cast<T*>(memory);
  }
  void Wait() { ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess); }

  cudaStream_t stream_ = nullptr;

 private:
  std::vector<void*> device_, host_;
};

struct ChecksumShape {
  uint32_t slice_bytes;
  uint32_t num_slices;
  uint32_t misaligned;  // of the first slice
};

TEST_F(CudaKernels, ChecksumsEqualTheCpusForEveryShape) {
  std::vector<ChecksumShape> shapes = {{65536, 64, 0},   {262144, 33, 0}, {1 << 20, 9, 0},
                                       {1 << 20, 1, 0},  {100003, 3, 0},  {4096, 300, 0},
                                       {1 << 20, 2, 16}, {65536, 5, 8},   {4099, 7, 1}};
  for (uint32_t bytes = kCudaChecksumBytesMin; bytes < 2200; bytes += 13) {
    shapes.push_back({bytes, 3, bytes % 17});
  }
  for (const ChecksumShape& shape : shapes) {
    const size_t bytes = size_t{shape.slice_bytes} * shape.num_slices + shape.misaligned;
    const std::vector<std::byte> data = RandomBytes(bytes, shape.slice_bytes);
    std::byte* const device = OnDevice(bytes);
    ASSERT_EQ(cudaMemcpy(device, data.data(), bytes, cudaMemcpyHostToDevice), cudaSuccess);
    auto* tasks = OnHost<CudaChecksumTask>(shape.num_slices);
    auto* checksums = OnHost<uint64_t>(shape.num_slices);
    for (uint32_t i = 0; i < shape.num_slices; ++i) {
      tasks[i] = {device + shape.misaligned + size_t{i} * shape.slice_bytes, (i + 1) * kSeedStep};
      checksums[i] = 0;
    }
    ASSERT_EQ(
        LaunchCudaChecksums(tasks, checksums, shape.num_slices, shape.slice_bytes, 4, stream_),
        cudaSuccess);
    Wait();
    for (uint32_t i = 0; i < shape.num_slices; ++i) {
      const std::byte* slice = data.data() + shape.misaligned + size_t{i} * shape.slice_bytes;
      ASSERT_EQ(checksums[i], Checksum(slice, shape.slice_bytes, (i + 1) * kSeedStep))
          << shape.slice_bytes << " bytes, slice " << i << " of " << shape.num_slices;
    }
  }
}

TEST_F(CudaKernels, ChecksumRefusesShapesThatItDoesNotCompute) {
  EXPECT_EQ(LaunchCudaChecksums(nullptr, nullptr, 1, kCudaChecksumBytesMin - 1, 4, stream_),
            cudaErrorInvalidValue);
  EXPECT_EQ(LaunchCudaChecksums(nullptr, nullptr, 1, 4096, 0, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchCudaChecksums(nullptr, nullptr, 0, 4096, 4, stream_), cudaSuccess);
}

struct CopyShape {
  uint32_t bytes;  // of a fragment
  uint32_t count;
};

// Fragments scattered with gaps; what lies between them stays as it was.
TEST_F(CudaKernels, CopiesEveryFragmentAndNothingElseInBothDirections) {
  for (const CopyShape shape : {CopyShape{16, 1},
                                {48, 5},
                                {4096, 1000},
                                {4112, 129},
                                {16384, 257},
                                {65520, 40},
                                {512, 3000}}) {
    const size_t step = shape.bytes + 32;
    const size_t total = step * shape.count;
    const std::vector<std::byte> data = RandomBytes(total, shape.bytes);
    std::byte* const host = OnHost<std::byte>(total);
    std::byte* const back = OnHost<std::byte>(total);
    std::byte* const device = OnDevice(total);
    auto* tasks = OnHost<CudaCopyTask>(shape.count);
    std::memcpy(host, data.data(), total);
    ASSERT_EQ(cudaMemset(device, 0xA5, total), cudaSuccess);
    for (uint32_t i = 0; i < shape.count; ++i) {
      // Fragment i goes to the place of its mirror image.
      tasks[i] = {device + (shape.count - 1 - i) * step, host + i * step, shape.bytes};
    }
    ASSERT_EQ(LaunchCudaCopies(tasks, shape.count, 4, stream_), cudaSuccess);
    Wait();
    std::memset(back, 0x5A, total);
    for (uint32_t i = 0; i < shape.count; ++i) {
      tasks[i] = {back + i * step, device + (shape.count - 1 - i) * step, shape.bytes};
    }
    ASSERT_EQ(LaunchCudaCopies(tasks, shape.count, 2, stream_), cudaSuccess);
    Wait();
    std::vector<std::byte> between(total);
    ASSERT_EQ(cudaMemcpy(between.data(), device, total, cudaMemcpyDeviceToHost), cudaSuccess);
    for (uint32_t i = 0; i < shape.count; ++i) {
      ASSERT_EQ(std::memcmp(back + i * step, data.data() + i * step, shape.bytes), 0) << i;
      for (size_t at = i * step + shape.bytes; at < (i + 1) * step; ++at) {
        ASSERT_EQ(back[at], std::byte{0x5A});
        ASSERT_EQ(between[at], std::byte{0xA5});
      }
    }
  }
}

TEST_F(CudaKernels, CopyRefusesMoreThanItsShareOfTheDevice) {
  EXPECT_EQ(LaunchCudaCopies(nullptr, 1, kCudaCopyBlocksMax + 1, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(LaunchCudaCopies(nullptr, 1, 0, stream_), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace kvstore::kernels
