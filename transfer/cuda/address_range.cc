#include "transfer/cuda/address_range.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "transfer/cuda/cuda_status.h"

namespace kvstore::transfer {

absl::StatusOr<std::shared_ptr<AddressRange>> AddressRange::Reserve(
    std::shared_ptr<CudaContext> context, uint64_t bytes) {
  if (bytes == 0 || bytes % context->granularity() != 0) {
    return absl::InvalidArgumentError(absl::StrCat("an address range of ", bytes,
                                                   " bytes, valid: multiples of ",
                                                   context->granularity(), " on this device"));
  }
  if (context->has_failed()) return context->failure();
  RETURN_IF_ERROR(context->Bind());
  CUdeviceptr address = 0;
  // Running out of addresses is no failure of the device.
  RETURN_IF_CUDA_ERROR(context->driver().ReserveAddress(bytes, &address), "an address range");
  return std::shared_ptr<AddressRange>(new AddressRange(std::move(context), address, bytes));
}

AddressRange::~AddressRange() {
  (void)context_->Bind();
  (void)context_->driver().FreeAddress(address_, bytes_);
}

absl::StatusOr<CUdeviceptr> AddressRange::Take(uint64_t bytes) {
  absl::MutexLock lock(&mutex_);
  CUdeviceptr free_from = address_;
  for (const auto& [address, taken_bytes] : taken_) {
    if (address - free_from >= bytes) break;
    free_from = address + taken_bytes;
  }
  if (address_ + bytes_ - free_from < bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no ", bytes >> 20, " MiB are free in an address range of ", bytes_ >> 20));
  }
  taken_[free_from] = bytes;
  return free_from;
}

void AddressRange::Give(CUdeviceptr address) {
  absl::MutexLock lock(&mutex_);
  taken_.erase(address);
}

}  // namespace kvstore::transfer
