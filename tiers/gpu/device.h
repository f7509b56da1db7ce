// Device: where the pages of a GPU tier lie and what moves them. `host` stands in for a GPU on
// machines without one: the same sharing with other processes and the same life of a page, in host
// memory. `cuda:N` is CudaDevice, in builds that have it.
//
// Threads: confined to the core thread, unless said otherwise.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "kvstore/base/region.h"
#include "tiers/slab_memory.h"
#include "tiers/slot_mover.h"

namespace kvstore::tiers {

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;  // "host", "cuda:0"
  // Whether a pool of `bytes` fits now. Errors: ResourceExhausted, naming what is free.
  virtual absl::Status CheckRoom(uint64_t /*bytes*/) { return absl::OkStatus(); }
  // Memory of one slab of the pool. Errors: ResourceExhausted, out of device memory; Unavailable,
  // out of descriptors, or the device has failed; InvalidArgument, not a size of this device.
  virtual absl::StatusOr<std::unique_ptr<SlabMemory>> MakeSlab(uint64_t bytes) = 0;
  // What copies slots in and out. `core` and `clock` outlive it; so does the device.
  // Errors: Unavailable, the device refuses.
  virtual absl::StatusOr<std::unique_ptr<SlotMover>> MakeMover(size_t inflight_max, Executor& core,
                                                               const Clock& clock) = 0;

  // Thread-safe. Host memory that slots will be copied from and to, while it exists.
  virtual void RegisterMemory(MutableRegion) {}
  virtual void UnregisterMemory(MutableRegion) {}
  // Thread-safe. Why it runs otherwise than it could; empty if it does not.
  virtual std::string degraded() const { return {}; }

  // Thread-safe. The device is gone until the process ends, and with it what its memory held.
  virtual bool has_failed() const { return false; }
  virtual std::string failure() const { return {}; }
  // Runs once, on any thread; at once if that is past. nullptr: from the return on it runs no more.
  virtual void set_on_failed(std::function<void()> /*on_failed*/) {}
};

// `name` is "host" or "cuda:N".
// Errors: InvalidArgument, another name; FailedPrecondition, this build has no CUDA or this machine
// no driver; NotFound, no such device; Unavailable, the driver refuses it.
absl::StatusOr<std::unique_ptr<Device>> OpenDevice(std::string_view name);

}  // namespace kvstore::tiers
