// Kernels that tests need of a device.
#pragma once

#include <cuda_runtime_api.h>

namespace kvstore::tests {

// Ends the context that it runs in.
cudaError_t LaunchTrap(cudaStream_t stream);

}  // namespace kvstore::tests
