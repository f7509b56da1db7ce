#include "engine_adapter/paging/page_memory.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#include "engine_adapter/paging/aligned_buffer.h"

namespace kvstore::engine {

absl::StatusOr<PageMemory::Page> HostPages::Allocate(Fill fill) {
  const auto num_bytes = static_cast<size_t>(layout_.page_bytes());
  absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Allocate(num_bytes);
  if (!buffer.ok()) return buffer.status();
  // 0xffff is a NaN in bf16, 0xffffffff in float32.
  if (fill == Fill::kNan) std::memset(buffer->data(), 0xff, num_bytes);
  return Page(std::move(*buffer).Release(), Return(this));
}

void HostPages::Free(std::byte* page) { std::free(page); }

}  // namespace kvstore::engine
