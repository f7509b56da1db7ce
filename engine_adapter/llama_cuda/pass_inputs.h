// PassInputs carries what a pass tells the device: tokens, positions and pages, through page-locked
// memory to fixed places on the device, where a graph finds them again.
//
// Threads: externally synchronised. The stream must have passed before the next Upload().
#pragma once

#include <absl/status/statusor.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "engine_adapter/llama/backend.h"
#include "engine_adapter/llama_cuda/device_memory.h"
#include "engine_adapter/paging/kv_layout.h"

namespace kvstore::engine {

class PassInputs {
 public:
  struct Tables {
    uint32_t* tokens = nullptr;         // [rows_max]
    int32_t* positions = nullptr;       // [rows_max]
    std::byte** read_pages = nullptr;   // [blocks_max]
    std::byte** write_pages = nullptr;  // [blocks_max]
  };

  // Room for passes of `rows_max` tokens below position `positions_max`. Errors: ResourceExhausted.
  static absl::StatusOr<PassInputs> Create(const KvLayout& layout, int64_t rows_max,
                                           int64_t positions_max);

  PassInputs() = default;  // empty
  // Enqueues the copy of what `pass` says.
  absl::Status Upload(const ForwardPass& pass, cudaStream_t stream);

  const Tables& device() const { return device_; }
  int64_t blocks_max() const { return blocks_max_; }

 private:
  KvLayout layout_;
  int64_t blocks_max_ = 0;
  DeviceMemory device_memory_;
  PinnedMemory host_memory_;
  Tables device_;
  Tables host_;
};

}  // namespace kvstore::engine
