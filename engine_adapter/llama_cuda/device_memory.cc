#include "engine_adapter/llama_cuda/device_memory.h"

#include <absl/strings/str_cat.h>
#include <cuda_runtime_api.h>

#include "engine_adapter/llama_cuda/runtime_status.h"

namespace kvstore::engine {

absl::StatusOr<DeviceMemory> DeviceMemory::Allocate(size_t num_bytes) {
  void* memory = nullptr;
  const cudaError_t result = cudaMalloc(&memory, num_bytes);
  if (result == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky: later calls shall not see it
    size_t free_bytes = 0, total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    return absl::ResourceExhaustedError(absl::StrCat("the device has ", free_bytes >> 20, " of ",
                                                     total_bytes >> 20, " MiB free; ",
                                                     (num_bytes >> 20) + 1, " MiB are needed"));
  }
  RETURN_IF_RUNTIME_ERROR(result, "allocation of device memory");
  DeviceMemory allocated;
  allocated.memory_.reset(static_cast<std::byte*>(memory));
  allocated.size_ = num_bytes;
  return allocated;
}

void DeviceMemory::Free::operator()(std::byte* memory) const { cudaFree(memory); }

absl::StatusOr<PinnedMemory> PinnedMemory::Allocate(size_t num_bytes) {
  void* memory = nullptr;
  RETURN_IF_RUNTIME_ERROR(cudaMallocHost(&memory, num_bytes), "allocation of page-locked memory");
  PinnedMemory allocated;
  allocated.memory_.reset(static_cast<std::byte*>(memory));
  return allocated;
}

void PinnedMemory::Free::operator()(std::byte* memory) const { cudaFreeHost(memory); }

}  // namespace kvstore::engine
