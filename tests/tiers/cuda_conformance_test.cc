// The conformance suite against the GPU tier on cuda:0; skipped, visibly, where there is none.
#include <memory>

#include "tests/tiers/tier_conformance.h"
#include "tiers/gpu/gpu_tier.h"

namespace kvstore::tiers {
namespace {

constexpr uint64_t kSlab = uint64_t{2} << 20;  // the granularity of device memory

class CudaUnderTest final : public TierUnderTest {
 public:
  absl::StatusOr<std::unique_ptr<Tier>> Make(Executor& core, const Clock& clock) override {
    return GpuTier::Create(
        {.device = "cuda:0", .bytes = 3 * kSlab, .slab_bytes = kSlab, .inflight_max = 8}, core,
        clock);
  }
};

std::vector<TierFactory> Factories() {
  std::vector<TierFactory> factories;
  if (OpenDevice("cuda:0").ok()) {
    factories.push_back({"cuda", [] { return std::make_unique<CudaUnderTest>(); }});
  }
  return factories;
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(TierConformance);
INSTANTIATE_TEST_SUITE_P(Cuda, TierConformance, testing::ValuesIn(Factories()), TierFactoryName);

TEST(CudaDeviceIsThere, OrTheSuiteAboveIsSkipped) {
  const absl::Status status = OpenDevice("cuda:0").status();
  if (!status.ok()) GTEST_SKIP() << status;
}

}  // namespace
}  // namespace kvstore::tiers
