// Codes of the CUDA driver as a Status.
#pragma once

#include <cuda.h>

#include "absl/status/status.h"

namespace kvstore::transfer {

// OK for CUDA_SUCCESS. Otherwise `what` ("copy"), the code's name and number: ResourceExhausted, out
// of memory; Unavailable, anything else. `what` is a literal.
absl::Status CudaStatus(CUresult result, const char* what);

}  // namespace kvstore::transfer

// In functions that return a Status or StatusOr.
#define RETURN_IF_CUDA_ERROR(call, what)                             \
  do {                                                               \
    const CUresult result_of_call_ = (call);                         \
    if (result_of_call_ != CUDA_SUCCESS)                             \
      return ::kvstore::transfer::CudaStatus(result_of_call_, what); \
  } while (false)
