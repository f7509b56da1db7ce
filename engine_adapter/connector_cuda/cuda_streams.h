// Streams and events of the CUDA runtime, owned.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <type_traits>

namespace kvstore::engine {

struct DestroyCudaStream {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
struct DestroyCudaEvent {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
using CudaStream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, DestroyCudaStream>;
using CudaEvent = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, DestroyCudaEvent>;

}  // namespace kvstore::engine
