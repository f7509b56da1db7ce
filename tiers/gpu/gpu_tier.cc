#include "tiers/gpu/gpu_tier.h"

#include <utility>

#include "kvstore/base/status_macros.h"

namespace kvstore::tiers {

absl::Status GpuTier::Options::Validate() const {
  RETURN_IF_ERROR(ValidateSlabs(bytes, slab_bytes));
  if (inflight_max == 0) {
    return absl::InvalidArgumentError("inflight_max is 0, valid: 1 and above");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<GpuTier>> GpuTier::Create(const Options& options, Executor& core,
                                                         const Clock& clock) {
  RETURN_IF_ERROR(options.Validate());
  ASSIGN_OR_RETURN(std::shared_ptr<Device> device, OpenDevice(options.device));
  return CreateOn(std::move(device), options, core, clock);
}

absl::StatusOr<std::unique_ptr<GpuTier>> GpuTier::CreateOn(std::shared_ptr<Device> device,
                                                           const Options& options, Executor& core,
                                                           const Clock& clock) {
  RETURN_IF_ERROR(options.Validate());
  RETURN_IF_ERROR(device->CheckRoom(options.bytes));
  SlabPages::Options pages_options;
  pages_options.name = "gpu-slabs";
  pages_options.num_slabs = static_cast<uint32_t>(options.bytes / options.slab_bytes);
  pages_options.slab_bytes = options.slab_bytes;
  pages_options.prepare = options.prepare;
  pages_options.make_slab = [device, bytes = options.slab_bytes] {
    return device->MakeSlab(bytes);
  };
  ASSIGN_OR_RETURN(std::unique_ptr<SlabPages> pages,
                   SlabPages::Create(std::move(pages_options), clock));
  ASSIGN_OR_RETURN(std::unique_ptr<SlotMover> mover,
                   device->MakeMover(options.inflight_max, core, clock));
  return std::unique_ptr<GpuTier>(
      new GpuTier(std::move(device), std::move(pages), std::move(mover), core));
}

std::string GpuTier::degraded() const {
  if (device_->has_failed()) return "the device has failed: " + device_->failure();
  const std::string memory = MemoryTier::degraded();
  return memory.empty() ? device_->degraded() : memory;
}

void GpuTier::set_on_lost(std::function<void()> on_lost) {
  on_lost_ = std::make_shared<std::function<void()>>(std::move(on_lost));
  device_->set_on_failed([&core = core_, on_lost_of = on_lost_] {
    core.Post([on_lost_of] {
      if (*on_lost_of) (*on_lost_of)();
    });
  });
}

void GpuTier::Stop() {
  device_->set_on_failed(nullptr);
  if (on_lost_ != nullptr) *on_lost_ = nullptr;
  MemoryTier::Stop();
}

}  // namespace kvstore::tiers
