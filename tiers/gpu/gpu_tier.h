// GpuTier keeps pages in a device pool that engine processes map, so that a GPU hit moves nothing
// and outlives the engine.
//
// Threads and ownership: tiers/memory_tier.h.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "tiers/gpu/device.h"
#include "tiers/memory_tier.h"

namespace kvstore::tiers {

class GpuTier final : public MemoryTier {
 public:
  struct Options {
    std::string device = "host";  // "host" or "cuda:N"
    uint64_t bytes = 0;           // rounded down to whole slabs
    uint64_t slab_bytes =
        0;  // multiple of 4096; a slot must fit. ChooseSlabBytes() is the daemon's choice
    Prepare prepare = Prepare::kAtStart;
    size_t inflight_max = 64;  // at least 1

    // Errors: InvalidArgument naming the field, its value and what is valid.
    absl::Status Validate() const;
  };
  // `core` and `clock` outlive the tier.
  // Errors: InvalidArgument; FailedPrecondition, this build does not have that device; Unavailable,
  // no memory or descriptors.
  static absl::StatusOr<std::unique_ptr<GpuTier>> Create(const Options& options, Executor& core,
                                                         const Clock& clock);
  // On a device that is open; options.device is ignored.
  static absl::StatusOr<std::unique_ptr<GpuTier>> CreateOn(std::shared_ptr<Device> device,
                                                           const Options& options, Executor& core,
                                                           const Clock& clock);
  ~GpuTier() override { GpuTier::Stop(); }

  TierKind kind() const override { return TierKind::kGpu; }
  std::string device_name() const { return device_->name(); }
  TierState state() const override {
    return device_->has_failed() ? TierState::kFailed : MemoryTier::state();
  }
  std::string degraded() const override;
  void set_on_lost(std::function<void()> on_lost) override;
  void Stop() override;

  // Thread-safe; see Device.
  void RegisterMemory(MutableRegion region) { device_->RegisterMemory(region); }
  void UnregisterMemory(MutableRegion region) { device_->UnregisterMemory(region); }

 private:
  GpuTier(std::shared_ptr<Device> device, std::unique_ptr<SlabPages> pages,
          std::unique_ptr<SlotMover> mover, Executor& core)
      : MemoryTier(std::move(pages), std::move(mover)), device_(std::move(device)), core_(core) {}

  // Shared with the factory of slabs in SlabPages, which ends after this member: the device
  // outlives its memory and its mover.
  const std::shared_ptr<Device> device_;
  Executor& core_;
  // Shared with the task that calls it, which may be queued when the tier goes: then it is empty.
  std::shared_ptr<std::function<void()>> on_lost_;
};

}  // namespace kvstore::tiers
