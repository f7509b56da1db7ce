#include "engine_adapter/llama_cuda/runtime_status.h"

#include <absl/strings/str_cat.h>

#include <string>

namespace kvstore::engine {
namespace {

absl::StatusCode CodeOf(cudaError_t result) {
  switch (result) {
    case cudaErrorMemoryAllocation:
      return absl::StatusCode::kResourceExhausted;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidDevice:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorDevicesUnavailable:
      return absl::StatusCode::kUnavailable;
    case cudaErrorInvalidValue:
    case cudaErrorNoKernelImageForDevice:
      return absl::StatusCode::kInvalidArgument;
    default:
      return absl::StatusCode::kInternal;
  }
}

std::string TextOf(cudaError_t result) {
  // The runtime says the same of a machine that has none.
  if (result == cudaErrorInsufficientDriver)
    return "there is no NVIDIA driver, or one older than 580, the first for CUDA 13";
  return absl::StrCat(cudaGetErrorName(result), ", ", cudaGetErrorString(result));
}

}  // namespace

absl::Status RuntimeStatus(cudaError_t result, std::string_view what) {
  if (result == cudaSuccess) return absl::OkStatus();
  // An error that can be survived is forgotten here, or the next launch would report it as its own.
  cudaGetLastError();
  return absl::Status(CodeOf(result), absl::StrCat(std::string(what), ": ", TextOf(result)));
}

}  // namespace kvstore::engine
