// The conformance suite against the tiers in mapped memory.
#include <memory>

#include "tests/tiers/keeper_of_test.h"
#include "tests/tiers/tier_conformance.h"
#include "tiers/dram/dram_tier.h"
#include "tiers/gpu/gpu_tier.h"

namespace kvstore::tiers {
namespace {

constexpr uint64_t kSlab = uint64_t{1} << 20;
constexpr size_t kInflightMax = 8;

class DramUnderTest final : public TierUnderTest {
 public:
  absl::StatusOr<std::unique_ptr<Tier>> Make(Executor& core, const Clock& clock) override {
    return DramTier::Create({.bytes = 3 * kSlab, .slab_bytes = kSlab, .inflight_max = kInflightMax},
                            core, clock);
  }
};

class KeptDramUnderTest final : public TierUnderTest {
 public:
  absl::StatusOr<std::unique_ptr<Tier>> Make(Executor& core, const Clock& clock) override {
    return DramTier::Create(
        {.bytes = 3 * kSlab, .slab_bytes = kSlab, .inflight_max = kInflightMax, .keeper = &keeper_},
        core, clock);
  }

 private:
  KeeperOfTest keeper_;
};

class GpuUnderTest final : public TierUnderTest {
 public:
  absl::StatusOr<std::unique_ptr<Tier>> Make(Executor& core, const Clock& clock) override {
    return GpuTier::Create(
        {.device = "host", .bytes = 3 * kSlab, .slab_bytes = kSlab, .inflight_max = kInflightMax},
        core, clock);
  }
};

INSTANTIATE_TEST_SUITE_P(
    MemoryTiers, TierConformance,
    testing::Values(TierFactory{"dram", [] { return std::make_unique<DramUnderTest>(); }},
                    TierFactory{"dram_kept", [] { return std::make_unique<KeptDramUnderTest>(); }},
                    TierFactory{"gpu_host", [] { return std::make_unique<GpuUnderTest>(); }}),
    TierFactoryName);

}  // namespace
}  // namespace kvstore::tiers
