#include "tiers/gpu/host_device.h"

namespace kvstore::tiers {

absl::StatusOr<std::unique_ptr<SlabMemory>> HostDevice::MakeSlab(uint64_t bytes) {
  return HostSlabMemory::Create({.name = "kvstore-gpu",
                                 .bytes = bytes,
                                 .huge_pages = transfer::SealedMemory::HugePages::kTry},
                                HostSlabMemory::Locking::kOff);
}

absl::StatusOr<std::unique_ptr<SlotMover>> HostDevice::MakeMover(size_t inflight_max,
                                                                 Executor& core,
                                                                 const Clock& clock) {
  const transfer::MemoryMover::Options options = {.name = "gpu-mover",
                                                  .inflight_max = inflight_max};
  return std::unique_ptr<SlotMover>(std::make_unique<HostSlotMover>(options, core, clock));
}

}  // namespace kvstore::tiers
