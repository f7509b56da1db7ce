// The CUDA driver of this machine: libcuda, opened at run time. A program that links this starts
// without a driver, and learns here that there is none.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "transfer/cuda/cuda_driver.h"

namespace kvstore::transfer {

// The driver stays loaded until the process ends. Errors: FailedPrecondition, no libcuda, a driver
// older than CUDA 13, or no device that it can use; the message says which.
absl::StatusOr<std::unique_ptr<CudaDriver>> LoadCudaDriver();

}  // namespace kvstore::transfer
