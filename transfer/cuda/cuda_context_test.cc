// Devices and their memory over a driver that can be made to fail.
#include "transfer/cuda/cuda_context.h"

#include <fcntl.h>

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/fake_cuda_driver.h"
#include "transfer/cuda/device_memory.h"
#include "transfer/cuda/loaded_driver.h"

namespace kvstore::transfer {
namespace {

using testing::HasSubstr;

constexpr uint64_t kBytes = 64 * FakeCudaDevice::kGranularity;

std::shared_ptr<FakeCudaDevice> NewDevice() { return std::make_shared<FakeCudaDevice>(1); }

TEST(LoadedDriver, AMachineWithoutADriverSaysSo) {
  const absl::StatusOr<std::unique_ptr<CudaDriver>> driver = LoadCudaDriver();
  if (driver.ok()) GTEST_SKIP() << "this machine has a driver";
  EXPECT_EQ(driver.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(driver.status().message()), HasSubstr("driver"));
}

TEST(CudaContext, ADeviceThatDoesNotExistIsNotFoundAndTheNumberOfThoseThatDoIsNamed) {
  for (const int device : {-1, 2, 999}) {
    auto fake = NewDevice();
    fake->num_devices = 2;
    const auto context = CudaContext::Open(MakeFakeCudaDriver(fake), device);
    EXPECT_TRUE(absl::IsNotFound(context.status())) << context.status();
    EXPECT_THAT(std::string(context.status().message()), HasSubstr("has 2"));
  }
}

TEST(CudaContext, TheFirstFailureStandsAndIsToldOnce) {
  auto context = *CudaContext::Open(MakeFakeCudaDriver(NewDevice()), 0);
  int told = 0;
  context->set_on_failed([&told] { ++told; });
  EXPECT_FALSE(context->Check(CUDA_ERROR_OUT_OF_MEMORY, "a").ok());
  EXPECT_FALSE(context->has_failed());
  EXPECT_FALSE(context->Check(CUDA_ERROR_ILLEGAL_ADDRESS, "first").ok());
  EXPECT_FALSE(context->Check(CUDA_ERROR_LAUNCH_FAILED, "second").ok());
  EXPECT_TRUE(context->has_failed());
  EXPECT_EQ(told, 1);
  EXPECT_THAT(std::string(context->failure().message()), HasSubstr("first"));
  context->set_on_failed([&told] { ++told; });
  EXPECT_EQ(told, 2) << "a failure that is past is told at once";
}

TEST(DeviceMemory, OutOfMemorySaysWhatIsFreeAndTheDeviceGoesOn) {
  auto fake = NewDevice();
  fake->memory_bytes = 3 * kBytes / 2;
  auto context = *CudaContext::Open(MakeFakeCudaDriver(fake), 0);
  const auto first = DeviceMemory::Create(context, kBytes);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = DeviceMemory::Create(context, kBytes);
  EXPECT_TRUE(absl::IsResourceExhausted(second.status())) << second.status();
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("are free"));
  EXPECT_FALSE(context->has_failed());
}

TEST(DeviceMemory, SizesOffTheGranularityAreRefused) {
  auto context = *CudaContext::Open(MakeFakeCudaDriver(NewDevice()), 0);
  for (const uint64_t bytes : {uint64_t{0}, kBytes + 1}) {
    EXPECT_TRUE(absl::IsInvalidArgument(DeviceMemory::Create(context, bytes).status()));
  }
}

// The fake's fresh memory is dirty.
TEST(DeviceMemory, NewMemoryIsZeroAndAnImporterSeesWhatTheOwnerWrote) {
  auto context = *CudaContext::Open(MakeFakeCudaDriver(NewDevice()), 0);
  auto memory = *DeviceMemory::Create(context, kBytes);
  absl::StatusOr<UniqueFd> fd = memory->Export();
  ASSERT_TRUE(fd.ok());
  std::vector<char> bytes(kBytes, 'x');
  ASSERT_EQ(pread(fd->get(), bytes.data(), kBytes, 0), static_cast<ssize_t>(kBytes));
  EXPECT_EQ(bytes, std::vector<char>(kBytes, 0));

  auto other = *CudaContext::Open(MakeFakeCudaDriver(NewDevice()), 0);
  const auto imported = DeviceMemory::Import(other, *fd, kBytes, DeviceAccess::kReadOnly);
  ASSERT_TRUE(imported.ok()) << imported.status();
  EXPECT_EQ((*imported)->bytes(), kBytes);
}

TEST(DeviceMemory, WhatIsNoDeviceMemoryOfThatSizeIsDataLossAndHarmsNoDevice) {
  auto context = *CudaContext::Open(MakeFakeCudaDriver(NewDevice()), 0);
  auto memory = *DeviceMemory::Create(context, kBytes);
  const UniqueFd fd = *memory->Export();
  const UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  EXPECT_TRUE(absl::IsDataLoss(
      DeviceMemory::Import(context, null, kBytes, DeviceAccess::kReadOnly).status()));
  EXPECT_TRUE(absl::IsDataLoss(
      DeviceMemory::Import(context, fd, 2 * kBytes, DeviceAccess::kReadOnly).status()));
  EXPECT_TRUE(absl::IsDataLoss(
      DeviceMemory::Import(context, UniqueFd(), kBytes, DeviceAccess::kReadOnly).status()));
  EXPECT_FALSE(context->has_failed());
}

// R16: whichever call fails, nothing leaks and nobody gets half-made memory.
TEST(DeviceMemory, WhicheverCallFailsNothingIsLeaked) {
  uint64_t failures = 0;
  for (uint64_t n = 1;; ++n) {
    auto fake = NewDevice();
    fake->fail_at = n;
    fake->failure = FakeFailure::kOnce;
    bool has_failed = false;
    {
      const auto context = CudaContext::Open(MakeFakeCudaDriver(fake), 0);
      if (context.ok()) {
        const auto memory = DeviceMemory::Create(*context, kBytes);
        EXPECT_EQ(memory.ok(), !(*context)->has_failed()) << "call " << n;
        has_failed = !memory.ok();
      } else {
        has_failed = true;
      }
    }
    EXPECT_EQ(fake->allocated_bytes, 0u) << "call " << n;
    EXPECT_EQ(fake->handles, 0u) << "call " << n;
    failures += has_failed;
    if (fake->calls < n) break;
  }
  EXPECT_GE(failures, 10u);
}

}  // namespace
}  // namespace kvstore::transfer
