#include "transfer/cuda/cuda_context.h"

#include <time.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "transfer/cuda/cuda_status.h"

namespace kvstore::transfer {
namespace {

constexpr absl::Duration kZeroMax = absl::Seconds(1);

absl::Status Refused(int device, const absl::Status& reason) {
  return absl::Status(reason.code(),
                      absl::StrCat("CUDA device ", device, " cannot be used: ", reason.message()));
}

}  // namespace

absl::StatusOr<std::shared_ptr<CudaContext>> CudaContext::Open(std::unique_ptr<CudaDriver> driver,
                                                               int device) {
  int count = 0;
  RETURN_IF_CUDA_ERROR(driver->CountDevices(&count), "device count");
  if (device < 0 || device >= count) {
    return absl::NotFoundError(absl::StrCat("there is no CUDA device ", device,
                                            "; this machine has ", count,
                                            count == 0 ? "" : ", numbered from 0"));
  }
  int shares = 0;
  RETURN_IF_CUDA_ERROR(
      driver->Attribute(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, device,
                        &shares),
      "device attribute");
  if (shares == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("CUDA device ", device, " cannot share its memory by file descriptor"));
  }
  std::shared_ptr<CudaContext> context(new CudaContext(std::move(driver), device));
  if (absl::Status status = context->Retain(); !status.ok()) return Refused(device, status);
  return context;
}

absl::Status CudaContext::Retain() {
  RETURN_IF_CUDA_ERROR(driver_->RetainContext(device_, &context_), "context");
  RETURN_IF_CUDA_ERROR(driver_->SetContext(context_), "context");
  RETURN_IF_CUDA_ERROR(driver_->Name(device_, &device_name_), "device name");
  size_t granularity = 0;
  RETURN_IF_CUDA_ERROR(driver_->Granularity(device_, &granularity), "memory granularity");
  granularity_ = granularity;
  RETURN_IF_CUDA_ERROR(driver_->CreateStream(0, &zero_stream_), "stream");
  RETURN_IF_CUDA_ERROR(driver_->CreateEvent(&zero_event_), "event");
  return absl::OkStatus();
}

CudaContext::~CudaContext() {
  if (context_ == nullptr) return;
  (void)driver_->SetContext(context_);
  // After a failure these report it once more.
  if (zero_event_ != nullptr) (void)driver_->DestroyEvent(zero_event_);
  if (zero_stream_ != nullptr) (void)driver_->DestroyStream(zero_stream_);
  (void)driver_->ReleaseContext(device_);
}

absl::Status CudaContext::Check(CUresult result, const char* what) {
  absl::Status status = CudaStatus(result, what);
  if (result != CUDA_SUCCESS && result != CUDA_ERROR_OUT_OF_MEMORY &&
      result != CUDA_ERROR_NOT_READY) {
    Fail(status);
  }
  return status;
}

std::string CudaContext::FreeMemory() const {
  size_t free_bytes = 0, total_bytes = 0;
  if (driver_->FreeMemory(&free_bytes, &total_bytes) != CUDA_SUCCESS) return "unknown";
  return absl::StrCat(free_bytes >> 20, " of ", total_bytes >> 20, " MiB");
}

absl::Status CudaContext::Zero(CUdeviceptr data, uint64_t bytes) {
  absl::MutexLock lock(&zero_mutex_);
  if (absl::Status s = Check(driver_->Zero(data, bytes, zero_stream_), "zeroing"); !s.ok())
    return s;
  if (absl::Status s = Check(driver_->Record(zero_event_, zero_stream_), "event"); !s.ok())
    return s;
  const absl::Time deadline = absl::Now() + kZeroMax;
  for (;;) {
    const CUresult result = driver_->Query(zero_event_);
    if (result != CUDA_ERROR_NOT_READY) return Check(result, "zeroing");
    if (absl::Now() > deadline) {
      Fail(absl::UnavailableError("the CUDA device did not zero memory in time"));
      return failure();
    }
    const timespec pause = {0, 20'000};
    nanosleep(&pause, nullptr);
  }
}

void CudaContext::Fail(absl::Status reason) {
  {
    absl::MutexLock lock(&mutex_);
    if (!failure_.ok()) return;
    failure_ = std::move(reason);
    has_failed_.store(true, std::memory_order_release);
  }
  absl::MutexLock lock(&callback_mutex_);
  if (on_failed_) std::exchange(on_failed_, nullptr)();
}

absl::Status CudaContext::failure() const {
  absl::MutexLock lock(&mutex_);
  return failure_;
}

void CudaContext::set_on_failed(std::function<void()> on_failed) {
  absl::MutexLock lock(&callback_mutex_);
  on_failed_ = std::move(on_failed);
  if (has_failed() && on_failed_) std::exchange(on_failed_, nullptr)();
}

}  // namespace kvstore::transfer
