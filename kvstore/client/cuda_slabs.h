// What imports the slabs of a daemon's CUDA device (device_slab.h). A library of its own:
// kvstore_client_cuda.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kvstore/client/device_slab.h"
#include "transfer/cuda/cuda_driver.h"

namespace kvstore::client {

// `device`: of the daemon's GPU tier, as this process numbers devices. Its primary context is used,
// which kernels launched by the CUDA runtime share. Errors: FailedPrecondition, no driver; NotFound,
// no such device; Unavailable.
absl::StatusOr<std::shared_ptr<DeviceSlabs>> OpenCudaSlabs(int device);
// On a driver of the caller's. Tests.
absl::StatusOr<std::shared_ptr<DeviceSlabs>> OpenCudaSlabs(
    std::unique_ptr<transfer::CudaDriver> driver, int device);

}  // namespace kvstore::client
