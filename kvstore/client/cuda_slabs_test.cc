// Slabs in device memory, mapped by a client, over a CUDA driver without a device.
#include "kvstore/client/cuda_slabs.h"

#include <fcntl.h>

#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kvstore/client/memory_session.h"
#include "tests/support/fake_cuda_driver.h"
#include "transfer/cuda/device_memory.h"
#include "transfer/memory/generation_table.h"
#include "transfer/memory/sealed_memory.h"

namespace kvstore::client {
namespace {

using transfer::FakeCudaDevice;

constexpr uint64_t kBytes = 64 * FakeCudaDevice::kGranularity;

class CudaSlabsTest : public testing::Test {
 protected:
  void SetUp() override {
    context_ = *transfer::CudaContext::Open(
        transfer::MakeFakeCudaDriver(std::make_shared<FakeCudaDevice>(1)), 0);
    memory_ = *transfer::DeviceMemory::Create(context_, kBytes);
    generations_.emplace(*transfer::GenerationTable::Create(kBytes));
    client_device_ = std::make_shared<FakeCudaDevice>(2);
    client_context_ = *transfer::CudaContext::Open(transfer::MakeFakeCudaDriver(client_device_), 0);
    range_ = *transfer::AddressRange::Reserve(client_context_, 4 * kBytes);
    slabs_ = *OpenCudaSlabs(client_context_, range_);
  }
  absl::StatusOr<std::shared_ptr<const MappedSlab>> Map(std::shared_ptr<DeviceSlabs> slabs,
                                                        uint64_t bytes) {
    return MappedSlab::Map(*memory_->Export(), *generations_->Export(), bytes,
                           MemoryAccess::kReadWrite, std::move(slabs));
  }

  std::shared_ptr<transfer::CudaContext> context_;
  std::unique_ptr<transfer::DeviceMemory> memory_;
  std::optional<transfer::GenerationTable> generations_;
  std::shared_ptr<FakeCudaDevice> client_device_;
  std::shared_ptr<transfer::CudaContext> client_context_;
  std::shared_ptr<transfer::AddressRange> range_;
  std::shared_ptr<DeviceSlabs> slabs_;
};

TEST_F(CudaSlabsTest, AMappedSlabHasAnAddressOnTheDeviceAndNoneHere) {
  const auto slab = Map(slabs_, kBytes);
  ASSERT_TRUE(slab.ok()) << slab.status();
  EXPECT_EQ((*slab)->data(), nullptr);
  ASSERT_NE((*slab)->device(), nullptr);
  EXPECT_NE((*slab)->device()->address(), 0u);
  generations_->Store(4096, 77);
  EXPECT_EQ((*slab)->Generation(4096), 77u);
}

TEST_F(CudaSlabsTest, WhatOneMappingWritesAnotherReads) {
  const auto writer = *Map(slabs_, kBytes), reader = *Map(slabs_, kBytes);
  std::vector<std::byte> in(10'000, std::byte{0x5C}), out(10'000);
  ASSERT_TRUE(writer->device()->Write(8192, in.data(), in.size()).ok());
  ASSERT_TRUE(reader->device()->Read(8192, out.data(), out.size()).ok());
  EXPECT_EQ(out, in);
}

TEST_F(CudaSlabsTest, SlabsLieSideBySideInTheRange) {
  const auto first = *Map(slabs_, kBytes);
  auto second = *Map(slabs_, kBytes);
  EXPECT_EQ(first->device()->address(), range_->data());
  EXPECT_EQ(second->device()->address(), range_->data() + kBytes);
  const auto third = *Map(slabs_, kBytes);
  second.reset();
  EXPECT_EQ((*Map(slabs_, kBytes))->device()->address(), range_->data() + kBytes) << "free again";
  EXPECT_EQ(third->device()->address(), range_->data() + 2 * kBytes);
}

TEST_F(CudaSlabsTest, NoRoomInTheRangeIsRefusedAndHarmsNothing) {
  std::vector<std::shared_ptr<const MappedSlab>> slabs;
  for (int i = 0; i < 4; ++i) slabs.push_back(*Map(slabs_, kBytes));
  EXPECT_TRUE(absl::IsResourceExhausted(Map(slabs_, kBytes).status()));
  EXPECT_FALSE(client_context_->has_failed());
}

TEST_F(CudaSlabsTest, HostSlabsAreRegisteredWhileTheyAreMapped) {
  const auto host = *transfer::SealedMemory::Create({.name = "slab", .bytes = kBytes});
  const uint64_t before = client_device_->registered;
  auto slab = MappedSlab::Map(*host.Export(MemoryAccess::kReadOnly), *generations_->Export(),
                              kBytes, MemoryAccess::kReadOnly, slabs_);
  ASSERT_TRUE(slab.ok()) << slab.status();
  EXPECT_NE((*slab)->data(), nullptr);
  EXPECT_EQ(client_device_->registered, before + 1);
  slabs_.reset();
  slab->reset();
  EXPECT_EQ(client_device_->registered, before);
}

TEST_F(CudaSlabsTest, BytesOutsideOfTheSlabAreRefused) {
  const auto slab = *Map(slabs_, kBytes);
  std::byte byte{};
  EXPECT_TRUE(absl::IsInvalidArgument(slab->device()->Read(kBytes, &byte, 1)));
  EXPECT_TRUE(absl::IsInvalidArgument(slab->device()->Write(~uint64_t{0}, &byte, 1)));
}

TEST_F(CudaSlabsTest, AClientWithoutADeviceRefusesDeviceMemory) {
  EXPECT_TRUE(absl::IsDataLoss(Map(nullptr, kBytes).status()));
}

TEST_F(CudaSlabsTest, AnotherSizeThanTheDaemonsIsDataLoss) {
  EXPECT_TRUE(absl::IsDataLoss(Map(slabs_, 2 * kBytes).status()));
}

TEST_F(CudaSlabsTest, ADeviceThatFailsIsUnavailableAndNothingHangs) {
  const auto slab = *Map(slabs_, kBytes);
  client_device_->has_failed = true;
  std::vector<std::byte> bytes(4096);
  EXPECT_TRUE(absl::IsUnavailable(slab->device()->Read(0, bytes.data(), bytes.size())));
}

}  // namespace
}  // namespace kvstore::client
