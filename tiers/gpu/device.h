// Device: where the pages of a GPU tier lie and what moves them. `host` stands in for a GPU on
// machines without one: the same sharing with other processes and the same life of a page, in host
// memory. `cuda` is another source file behind this interface, in builds that have it.
//
// Threads: confined to the core thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "tiers/slab_memory.h"
#include "tiers/slot_mover.h"

namespace kvstore::tiers {

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;  // "host", "cuda:0"
  // Memory of one slab of the pool. Errors: Unavailable, out of device memory or descriptors.
  virtual absl::StatusOr<std::unique_ptr<SlabMemory>> MakeSlab(uint64_t bytes) = 0;
  // What copies slots in and out. `core` and `clock` outlive it; so does the device.
  virtual std::unique_ptr<SlotMover> MakeMover(size_t inflight_max, Executor& core,
                                               const Clock& clock) = 0;
};

// `name` is "host" or "cuda:N".
// Errors: InvalidArgument, another name; FailedPrecondition, this build has no CUDA.
absl::StatusOr<std::unique_ptr<Device>> OpenDevice(std::string_view name);

}  // namespace kvstore::tiers
