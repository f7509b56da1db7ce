#include "transfer/cuda/cuda_status.h"

#include "absl/strings/str_cat.h"

namespace kvstore::transfer {
namespace {

// Those that a person is likely to meet; cuGetErrorName() would need the driver.
const char* NameOf(CUresult result) {
  switch (result) {
    case CUDA_ERROR_INVALID_VALUE:
      return "invalid value";
    case CUDA_ERROR_OUT_OF_MEMORY:
      return "out of memory";
    case CUDA_ERROR_DEINITIALIZED:
      return "driver shut down";
    case CUDA_ERROR_NO_DEVICE:
      return "no device";
    case CUDA_ERROR_INVALID_DEVICE:
      return "invalid device";
    case CUDA_ERROR_DEVICE_UNAVAILABLE:
      return "device unavailable";
    case CUDA_ERROR_INVALID_CONTEXT:
      return "invalid context";
    case CUDA_ERROR_ECC_UNCORRECTABLE:
      return "uncorrectable memory error";
    case CUDA_ERROR_INVALID_HANDLE:
      return "invalid handle";
    case CUDA_ERROR_ILLEGAL_ADDRESS:
      return "illegal address";
    case CUDA_ERROR_LAUNCH_FAILED:
      return "kernel failed";
    case CUDA_ERROR_LAUNCH_TIMEOUT:
      return "kernel timed out";
    case CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED:
      return "host memory is registered already";
    case CUDA_ERROR_NOT_PERMITTED:
      return "not permitted";
    case CUDA_ERROR_NOT_SUPPORTED:
      return "not supported";
    case CUDA_ERROR_SYSTEM_NOT_READY:
      return "system not ready";
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
      return "driver and kernel module differ";
    default:
      return "error";
  }
}

}  // namespace

absl::Status CudaStatus(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  const std::string message =
      absl::StrCat("CUDA ", what, ": ", NameOf(result), " (", static_cast<int>(result), ")");
  return result == CUDA_ERROR_OUT_OF_MEMORY ? absl::ResourceExhaustedError(message)
                                            : absl::UnavailableError(message);
}

}  // namespace kvstore::transfer
