// The conformance suite against the GPU tier on a CUDA driver without a device: late, in any order,
// with poisoned destinations.
#include <memory>

#include "tests/support/fake_cuda_driver.h"
#include "tests/tiers/tier_conformance.h"
#include "tiers/gpu/cuda_device.h"
#include "tiers/gpu/gpu_tier.h"

namespace kvstore::tiers {
namespace {

constexpr uint64_t kSlab = uint64_t{1} << 20;

class CudaUnderTest final : public TierUnderTest {
 public:
  explicit CudaUnderTest(absl::Duration delay_max) : delay_max_(delay_max) {}
  absl::StatusOr<std::unique_ptr<Tier>> Make(Executor& core, const Clock& clock) override {
    auto fake = std::make_shared<transfer::FakeCudaDevice>(1);
    fake->delay_max = delay_max_;
    absl::StatusOr<std::unique_ptr<Device>> device =
        CudaDevice::Open(transfer::MakeFakeCudaDriver(std::move(fake)), 0);
    if (!device.ok()) return device.status();
    return GpuTier::CreateOn(*std::move(device),
                             {.bytes = 3 * kSlab, .slab_bytes = kSlab, .inflight_max = 8}, core,
                             clock);
  }
  bool Corrupt(Tier& tier, PageId page) override {
    absl::StatusOr<SlabExport> slab =
        static_cast<GpuTier&>(tier).Export(page.slab, "tenant-a", MemoryAccess::kReadWrite);
    if (!slab.ok()) return false;
    std::byte byte{};  // the first page of the first slab
    const off_t at = 1000;
    return page.slot == 0 && pread(slab->slab.get(), &byte, 1, at) == 1 &&
           (byte ^= std::byte{0x40}, pwrite(slab->slab.get(), &byte, 1, at) == 1);
  }

 private:
  const absl::Duration delay_max_;
};

INSTANTIATE_TEST_SUITE_P(
    CudaFake, TierConformance,
    testing::Values(
        TierFactory{"quick", [] { return std::make_unique<CudaUnderTest>(absl::ZeroDuration()); }},
        TierFactory{"late",
                    [] { return std::make_unique<CudaUnderTest>(absl::Microseconds(300)); }}),
    TierFactoryName);

}  // namespace
}  // namespace kvstore::tiers
