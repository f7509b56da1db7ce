// Codes of the CUDA runtime as a Status.
#pragma once

#include <absl/status/status.h>
#include <cuda_runtime_api.h>

#include <string_view>

namespace kvstore::engine {

// OK for cudaSuccess; an error that is not sticky is cleared. Otherwise `what` ("a page pool of 8 GiB") and the code's name:
// ResourceExhausted, out of memory; Unavailable, no device or driver; InvalidArgument, a shape that
// a kernel does not compute; Internal, anything else.
absl::Status RuntimeStatus(cudaError_t result, std::string_view what);

}  // namespace kvstore::engine

// In functions that return a Status or StatusOr.
#define RETURN_IF_RUNTIME_ERROR(call, what)                           \
  do {                                                                \
    const cudaError_t result_of_call_ = (call);                       \
    if (result_of_call_ != cudaSuccess) {                             \
      return ::kvstore::engine::RuntimeStatus(result_of_call_, what); \
    }                                                                 \
  } while (false)
