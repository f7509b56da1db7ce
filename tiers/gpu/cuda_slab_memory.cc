#include "tiers/gpu/cuda_slab_memory.h"

#include "kvstore/base/status_macros.h"

namespace kvstore::tiers {

absl::StatusOr<std::unique_ptr<SlabMemory>> CudaSlabMemory::Create(
    std::shared_ptr<transfer::CudaContext> context, uint64_t bytes) {
  ASSIGN_OR_RETURN(std::unique_ptr<transfer::DeviceMemory> memory,
                   transfer::DeviceMemory::Create(std::move(context), bytes));
  ASSIGN_OR_RETURN(transfer::GenerationTable generations, transfer::GenerationTable::Create(bytes));
  return std::unique_ptr<SlabMemory>(new CudaSlabMemory(std::move(memory), std::move(generations)));
}

absl::StatusOr<SlabExport> CudaSlabMemory::Export(MemoryAccess /*access*/) const {
  SlabExport exported;
  ASSIGN_OR_RETURN(exported.slab, memory_->Export());
  ASSIGN_OR_RETURN(exported.generations, generations_.Export());
  exported.slab_bytes = memory_->bytes();
  return exported;
}

}  // namespace kvstore::tiers
