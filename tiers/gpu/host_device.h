// HostDevice: host memory in the place of a GPU's. Slabs are sealed memfds, as in the DRAM tier,
// and copies are made by CPU.
#pragma once

#include <memory>
#include <string>

#include "tiers/gpu/device.h"

namespace kvstore::tiers {

class HostDevice final : public Device {
 public:
  std::string name() const override { return "host"; }
  absl::StatusOr<std::unique_ptr<SlabMemory>> MakeSlab(uint64_t bytes) override;
  absl::StatusOr<std::unique_ptr<SlotMover>> MakeMover(size_t inflight_max, Executor& core,
                                                       const Clock& clock) override;
};

}  // namespace kvstore::tiers
