#include "engine_adapter/paging/aligned_buffer.h"

#include <absl/strings/str_cat.h>
#include <sys/mman.h>

namespace kvstore::engine {

absl::StatusOr<AlignedBuffer> AlignedBuffer::Allocate(size_t num_bytes) {
  const size_t alignment = num_bytes >= kHugePageBytes ? kHugePageBytes : kAlignment;
  const size_t rounded = (num_bytes + alignment - 1) / alignment * alignment;
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(alignment, rounded));
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for ", num_bytes, " bytes"));
  }
  // A hint; without huge pages it is only slower.
  if (alignment == kHugePageBytes) (void)::madvise(memory, rounded, MADV_HUGEPAGE);
  return AlignedBuffer(memory, num_bytes);
}

}  // namespace kvstore::engine
