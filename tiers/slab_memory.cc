#include "tiers/slab_memory.h"

#include <utility>

#include "absl/memory/memory.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::tiers {

absl::StatusOr<std::unique_ptr<SlabMemory>> HostSlabMemory::Create(
    transfer::SealedMemory::Options options, Locking locking, Life life) {
  ASSIGN_OR_RETURN(transfer::SealedMemory memory, transfer::SealedMemory::Create(options));
  ASSIGN_OR_RETURN(transfer::GenerationTable generations,
                   transfer::GenerationTable::Create(memory.bytes(), life));
  return std::unique_ptr<SlabMemory>(
      new HostSlabMemory(std::move(memory), std::move(generations), locking));
}

absl::StatusOr<std::unique_ptr<HostSlabMemory>> HostSlabMemory::Adopt(UniqueFd slab,
                                                                      UniqueFd generations,
                                                                      uint64_t bytes,
                                                                      Locking locking) {
  ASSIGN_OR_RETURN(transfer::SealedMemory memory,
                   transfer::SealedMemory::Adopt(std::move(slab), bytes));
  ASSIGN_OR_RETURN(transfer::GenerationTable table,
                   transfer::GenerationTable::Adopt(std::move(generations), bytes));
  return std::unique_ptr<HostSlabMemory>(
      new HostSlabMemory(std::move(memory), std::move(table), locking));
}

absl::Status HostSlabMemory::Prepare(uint64_t offset, uint64_t bytes) const {
  RETURN_IF_ERROR(memory_.Populate(offset, bytes));
  return locking_ == Locking::kLock ? memory_.Lock(offset, bytes) : absl::OkStatus();
}

void HostSlabMemory::Discard() {
  // A memfd refuses this only when sealed against writing, which this one is not.
  (void)memory_.Discard();
}

absl::StatusOr<SlabExport> HostSlabMemory::Export(MemoryAccess access) const {
  SlabExport exported;
  ASSIGN_OR_RETURN(exported.slab, memory_.Export(access));
  ASSIGN_OR_RETURN(exported.generations, generations_.Export());
  exported.slab_bytes = memory_.bytes();
  return exported;
}

}  // namespace kvstore::tiers
