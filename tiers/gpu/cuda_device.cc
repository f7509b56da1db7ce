#include "tiers/gpu/cuda_device.h"

#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"
#include "tiers/gpu/cuda_slab_memory.h"
#include "tiers/gpu/cuda_slot_mover.h"
#include "transfer/cuda/cuda_status.h"
#include "transfer/cuda/loaded_driver.h"

namespace kvstore::tiers {

absl::StatusOr<std::unique_ptr<Device>> CudaDevice::Open(int number) {
  ASSIGN_OR_RETURN(std::unique_ptr<transfer::CudaDriver> driver, transfer::LoadCudaDriver());
  return Open(std::move(driver), number);
}

absl::StatusOr<std::unique_ptr<Device>> CudaDevice::Open(
    std::unique_ptr<transfer::CudaDriver> driver, int number) {
  ASSIGN_OR_RETURN(std::shared_ptr<transfer::CudaContext> context,
                   transfer::CudaContext::Open(std::move(driver), number));
  return std::unique_ptr<Device>(new CudaDevice(std::move(context)));
}

std::string CudaDevice::name() const { return absl::StrCat("cuda:", context_->device()); }

absl::Status CudaDevice::CheckRoom(uint64_t bytes) {
  RETURN_IF_ERROR(context_->Bind());
  size_t free_bytes = 0, total_bytes = 0;
  RETURN_IF_ERROR(
      context_->Check(context_->driver().FreeMemory(&free_bytes, &total_bytes), "free memory"));
  if (bytes <= free_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "tier.gpu.bytes is ", bytes >> 20, "MiB, but ", name(), " (", context_->device_name(),
      ") has ", free_bytes >> 20, "MiB free of ", total_bytes >> 20, "MiB"));
}

absl::StatusOr<std::unique_ptr<SlabMemory>> CudaDevice::MakeSlab(uint64_t bytes) {
  return CudaSlabMemory::Create(context_, bytes);
}

absl::StatusOr<std::unique_ptr<SlotMover>> CudaDevice::MakeMover(size_t inflight_max,
                                                                 Executor& core,
                                                                 const Clock& clock) {
  return CudaSlotMover::Create(context_, inflight_max, core, clock);
}

// Without it the driver copies through a buffer of its own, at a fraction of the rate.
void CudaDevice::RegisterMemory(MutableRegion region) {
  if (!context_->Bind().ok()) return;
  const CUresult result = context_->driver().RegisterHost(region.data, region.bytes,
                                                          transfer::DeviceAccess::kReadWrite);
  absl::MutexLock lock(&mutex_);
  if (result == CUDA_SUCCESS) {
    registered_.insert(region.data);
  } else if (degraded_.empty()) {
    degraded_ = absl::StrCat("DRAM is copied slowly: ",
                             transfer::CudaStatus(result, "registration").message());
  }
}

void CudaDevice::UnregisterMemory(MutableRegion region) {
  {
    absl::MutexLock lock(&mutex_);
    if (registered_.erase(region.data) == 0) return;
  }
  if (context_->Bind().ok()) (void)context_->driver().UnregisterHost(region.data);
}

std::string CudaDevice::degraded() const {
  absl::MutexLock lock(&mutex_);
  return degraded_;
}

std::string CudaDevice::failure() const {
  return std::string(StdView(context_->failure().message()));
}

}  // namespace kvstore::tiers
