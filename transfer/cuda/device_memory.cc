#include "transfer/cuda/device_memory.h"

#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "transfer/cuda/cuda_status.h"

namespace kvstore::transfer {

absl::StatusOr<std::unique_ptr<DeviceMemory>> DeviceMemory::Create(
    std::shared_ptr<CudaContext> context, uint64_t bytes, std::shared_ptr<AddressRange> range) {
  if (bytes == 0 || bytes % context->granularity() != 0) {
    return absl::InvalidArgumentError(absl::StrCat("device memory of ", bytes,
                                                   " bytes, valid: multiples of ",
                                                   context->granularity(), " on this device"));
  }
  if (context->has_failed()) return context->failure();
  RETURN_IF_ERROR(context->Bind());
  CudaContext& owner = *context;
  auto memory = absl::WrapUnique(new DeviceMemory(std::move(context), bytes, std::move(range)));
  CUresult result = owner.driver().Create(owner.device(), bytes, &memory->handle_);
  memory->has_handle_ = result == CUDA_SUCCESS;
  if (result == CUDA_SUCCESS) result = memory->MapIt(DeviceAccess::kReadWrite);
  if (result == CUDA_ERROR_OUT_OF_MEMORY) {
    return absl::ResourceExhaustedError(absl::StrCat("out of device memory: ", bytes >> 20,
                                                     " MiB more are asked for, ",
                                                     owner.FreeMemory(), " are free"));
  }
  RETURN_IF_ERROR(owner.Check(result, "device memory"));
  RETURN_IF_ERROR(owner.Zero(memory->address_, bytes));
  return memory;
}

absl::StatusOr<std::unique_ptr<DeviceMemory>> DeviceMemory::Import(
    std::shared_ptr<CudaContext> context, const UniqueFd& fd, uint64_t bytes, DeviceAccess access,
    std::shared_ptr<AddressRange> range) {
  if (context->has_failed()) return context->failure();
  RETURN_IF_ERROR(context->Bind());
  CudaContext& owner = *context;
  auto memory = absl::WrapUnique(new DeviceMemory(std::move(context), bytes, std::move(range)));
  CUresult result = owner.driver().Import(fd.get(), &memory->handle_);
  memory->has_handle_ = result == CUDA_SUCCESS;
  if (result == CUDA_SUCCESS) result = memory->MapIt(access);
  if (result == CUDA_SUCCESS) return memory;
  // What the other side sent is at fault, or this process is out of something; our device is not.
  const absl::Status status = CudaStatus(result, "import of device memory");
  return absl::IsResourceExhausted(status) ? status : absl::DataLossError(status.message());
}

CUresult DeviceMemory::FindAddress() {
  if (range_ != nullptr) {
    address_ = range_->Take(bytes_).value_or(0);
    return address_ == 0 ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
  }
  const CUresult result = context_->driver().ReserveAddress(bytes_, &address_);
  if (result != CUDA_SUCCESS) address_ = 0;
  return result;
}

CUresult DeviceMemory::MapIt(DeviceAccess access) {
  CudaDriver& driver = context_->driver();
  CUresult result = FindAddress();
  if (result != CUDA_SUCCESS) return result;
  result = driver.Map(address_, bytes_, handle_);
  is_mapped_ = result == CUDA_SUCCESS;
  return is_mapped_ ? driver.SetAccess(address_, bytes_, context_->device(), access) : result;
}

// On a device that has failed these report the failure once more; the process's end frees all.
DeviceMemory::~DeviceMemory() {
  CudaDriver& driver = context_->driver();
  (void)context_->Bind();
  if (is_mapped_) (void)driver.Unmap(address_, bytes_);
  if (address_ != 0 && range_ != nullptr) range_->Give(address_);
  if (address_ != 0 && range_ == nullptr) (void)driver.FreeAddress(address_, bytes_);
  if (has_handle_) (void)driver.Release(handle_);
}

absl::StatusOr<UniqueFd> DeviceMemory::Export() const {
  if (context_->has_failed()) return context_->failure();
  RETURN_IF_ERROR(context_->Bind());
  int fd = -1;
  // Running out of descriptors is no failure of the device.
  RETURN_IF_CUDA_ERROR(context_->driver().Export(handle_, &fd), "export of device memory");
  return UniqueFd(fd);
}

}  // namespace kvstore::transfer
