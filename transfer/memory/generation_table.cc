#include "transfer/memory/generation_table.h"

#include "kvstore/base/status_macros.h"

namespace kvstore::transfer {

static_assert(std::atomic_ref<uint64_t>::is_always_lock_free, "shared between processes");

absl::StatusOr<GenerationTable> GenerationTable::Create(uint64_t slab_bytes) {
  SealedMemory::Options options;
  options.name = "kvstore-generations";
  options.bytes = (slab_bytes / 4096 * sizeof(uint64_t) + 4095) & ~uint64_t{4095};
  options.seal = SealedMemory::Seal::kFutureWrite;
  ASSIGN_OR_RETURN(SealedMemory memory, SealedMemory::Create(options));
  return GenerationTable(std::move(memory));
}

}  // namespace kvstore::transfer
