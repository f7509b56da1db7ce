// What the conformance suite is told of a tier: how to make one, and how to hurt it.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "tiers/tier.h"

namespace kvstore::tiers {

// What a tier under test needs to be made and hurt. Lives longer than the tier.
class TierUnderTest {
 public:
  virtual ~TierUnderTest() = default;
  // An empty tier that serves, with 2 to 64 slabs of 1 to 16 MiB and an inflight_max of 4 to 64.
  virtual absl::StatusOr<std::unique_ptr<Tier>> Make(Executor& core, const Clock& clock) = 0;
  // Flips bits in the stored page; false: this tier has no way to. Core thread.
  virtual bool Corrupt(Tier& tier, PageId page) {
    const std::optional<MutableRegion> region = tier.Address(page);
    if (!region.has_value()) return false;
    region->data[region->bytes / 3] ^= std::byte{0x40};
    return true;
  }
};

struct TierFactory {
  std::string name;
  std::function<std::unique_ptr<TierUnderTest>()> make;
};
inline std::string TierFactoryName(const testing::TestParamInfo<TierFactory>& param) {
  return param.param.name;
}

}  // namespace kvstore::tiers
