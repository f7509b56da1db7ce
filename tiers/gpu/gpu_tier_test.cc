#include "tiers/gpu/gpu_tier.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvstore::tiers {
namespace {

using testing::HasSubstr;

absl::Status OpenStatus(const std::string& device) { return OpenDevice(device).status(); }

TEST(Device, HostIsAlwaysThere) {
  absl::StatusOr<std::unique_ptr<Device>> device = OpenDevice("host");
  ASSERT_TRUE(device.ok());
  EXPECT_EQ((*device)->name(), "host");
}

// Either the build lacks CUDA, or the machine a driver, or the driver that many devices.
TEST(Device, CudaThatIsNotThereIsRefusedWithTheReason) {
  const absl::Status status = OpenStatus("cuda:999");
  EXPECT_TRUE(absl::IsFailedPrecondition(status) || absl::IsNotFound(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("cuda:999: "));
  EXPECT_THAT(
      std::string(status.message()),
      testing::AnyOf(HasSubstr("no CUDA"), HasSubstr("driver"), HasSubstr("this machine has")));
}

TEST(Device, OtherNamesAreInvalid) {
  for (const char* name :
       {"", "cuda", "cuda:", "cuda:x", "cuda:1234", "cuda:-1", "Host", "rocm:0"}) {
    EXPECT_EQ(OpenStatus(name).code(), absl::StatusCode::kInvalidArgument) << name;
  }
}

TEST(GpuTier, BadOptionsAreRefusedByName) {
  MonotonicClock clock;
  ManualExecutor core(clock);
  const auto status_of = [&](const GpuTier::Options& options) {
    return std::string(GpuTier::Create(options, core, clock).status().message());
  };
  EXPECT_THAT(status_of({.bytes = 4096, .slab_bytes = 0}), HasSubstr("slab_bytes"));
  EXPECT_THAT(status_of({.bytes = 4096, .slab_bytes = 8192}), HasSubstr("bytes is 4096"));
  EXPECT_THAT(status_of({.bytes = 8192, .slab_bytes = 8192, .inflight_max = 0}),
              HasSubstr("inflight_max"));
  EXPECT_THAT(status_of({.device = "cuda:999", .bytes = 8192, .slab_bytes = 8192}),
              HasSubstr("cuda:999"));
}

}  // namespace
}  // namespace kvstore::tiers
