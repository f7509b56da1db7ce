// What imports the slabs of a daemon's CUDA device (device_slab.h). A library of its own:
// kvstore_client_cuda.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kvstore/client/device_slab.h"
#include "transfer/cuda/address_range.h"
#include "transfer/cuda/cuda_context.h"

namespace kvstore::client {

// `device`: of the daemon's GPU tier, as this process numbers devices. Its primary context is used,
// which kernels launched by the CUDA runtime share. Errors: FailedPrecondition, no driver; NotFound,
// no such device; Unavailable.
absl::StatusOr<std::shared_ptr<DeviceSlabs>> OpenCudaSlabs(int device);
// In a context of the caller's, at addresses of `range` (null: anywhere).
absl::StatusOr<std::shared_ptr<DeviceSlabs>> OpenCudaSlabs(
    std::shared_ptr<transfer::CudaContext> context, std::shared_ptr<transfer::AddressRange> range);

}  // namespace kvstore::client
