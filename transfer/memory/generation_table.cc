#include "transfer/memory/generation_table.h"

#include "kvstore/base/status_macros.h"

namespace kvstore::transfer {

static_assert(std::atomic_ref<uint64_t>::is_always_lock_free, "shared between processes");

namespace {

uint64_t TableBytes(uint64_t slab_bytes) {
  return (slab_bytes / 4096 * sizeof(uint64_t) + 4095) & ~uint64_t{4095};
}

}  // namespace

absl::StatusOr<GenerationTable> GenerationTable::Create(uint64_t slab_bytes, Life life) {
  SealedMemory::Options options;
  options.name = "kvstore-generations";
  options.bytes = TableBytes(slab_bytes);
  options.seal =
      life == Life::kKept ? SealedMemory::Seal::kResize : SealedMemory::Seal::kFutureWrite;
  ASSIGN_OR_RETURN(SealedMemory memory, SealedMemory::Create(options));
  return GenerationTable(std::move(memory));
}

absl::StatusOr<GenerationTable> GenerationTable::Adopt(UniqueFd fd, uint64_t slab_bytes) {
  ASSIGN_OR_RETURN(SealedMemory memory, SealedMemory::Adopt(std::move(fd), TableBytes(slab_bytes)));
  return GenerationTable(std::move(memory));
}

void GenerationTable::MoveAllTo(uint64_t generation) {
  for (uint64_t offset = 0; offset < memory_.bytes() / sizeof(uint64_t) * 4096; offset += 4096) {
    if (Load(offset) != 0) Store(offset, generation);
  }
}

}  // namespace kvstore::transfer
