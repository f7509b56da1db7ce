#include "engine_adapter/llama_cuda/pass_inputs.h"

#include <algorithm>

#include "engine_adapter/llama_cuda/runtime_status.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {

absl::StatusOr<PassInputs> PassInputs::Create(const KvLayout& layout, int64_t rows_max,
                                              int64_t positions_max) {
  PassInputs inputs;
  inputs.layout_ = layout;
  inputs.blocks_max_ = layout.BlocksOf(positions_max);
  const auto blocks_bytes = static_cast<size_t>(inputs.blocks_max_) * sizeof(std::byte*);
  const auto rows_bytes = static_cast<size_t>(rows_max) * 4;
  const size_t total = 2 * rows_bytes + 2 * blocks_bytes;
  ASSIGN_OR_RETURN(inputs.device_memory_, DeviceMemory::Allocate(total));
  ASSIGN_OR_RETURN(inputs.host_memory_, PinnedMemory::Allocate(total));
  const auto place = [&](std::byte* base) {
    return Tables{.tokens = reinterpret_cast<uint32_t*>(base + 2 * blocks_bytes),
                  .positions = reinterpret_cast<int32_t*>(base + 2 * blocks_bytes + rows_bytes),
                  .read_pages = reinterpret_cast<std::byte**>(base),
                  .write_pages = reinterpret_cast<std::byte**>(base + blocks_bytes)};
  };
  inputs.device_ = place(inputs.device_memory_.data());
  inputs.host_ = place(inputs.host_memory_.data());
  return inputs;
}

absl::Status PassInputs::Upload(const ForwardPass& pass, cudaStream_t stream) {
  const size_t rows = pass.token_ids.size();
  std::copy(pass.token_ids.begin(), pass.token_ids.end(), host_.tokens);
  for (size_t row = 0; row < rows; ++row) {
    host_.positions[row] = static_cast<int32_t>(pass.first_position + static_cast<int64_t>(row));
  }
  const auto blocks =
      static_cast<size_t>(layout_.BlocksOf(pass.first_position + static_cast<int64_t>(rows)));
  for (size_t block = 0; block < blocks; ++block) {
    host_.read_pages[block] = const_cast<std::byte*>(pass.read_pages[block]);
    host_.write_pages[block] = pass.write_pages[block];
  }
  const auto copy = [&](auto* to, const auto* from, size_t count) {
    return RuntimeStatus(
        cudaMemcpyAsync(to, from, count * sizeof(*from), cudaMemcpyHostToDevice, stream),
        "upload of a pass");
  };
  RETURN_IF_ERROR(copy(device_.tokens, host_.tokens, rows));
  RETURN_IF_ERROR(copy(device_.positions, host_.positions, rows));
  RETURN_IF_ERROR(copy(device_.read_pages, host_.read_pages, blocks));
  return copy(device_.write_pages, host_.write_pages, blocks);
}

}  // namespace kvstore::engine
