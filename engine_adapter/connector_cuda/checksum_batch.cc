#include "engine_adapter/connector_cuda/checksum_batch.h"

#include "engine_adapter/llama_cuda/runtime_status.h"

namespace kvstore::engine {

absl::Status ChecksumBatch::Launch(size_t first, size_t count, uint32_t blocks_max,
                                   cudaStream_t stream) {
  if (count == 0) return absl::OkStatus();
  return RuntimeStatus(
      kernels::LaunchCudaChecksums(tasks_ + first, checksums_ + first, static_cast<uint32_t>(count),
                                   slice_bytes_, blocks_max, stream),
      "checksums of pages");
}

}  // namespace kvstore::engine
