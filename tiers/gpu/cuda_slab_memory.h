// CudaSlabMemory: a slab in device memory, its generation table in host memory.
//
// The memory is given back to the driver when the last owner goes, here and in other processes:
// what a client still maps is never handed on, and what is handed on was zeroed.
//
// Threads: tiers/slab_memory.h.
#pragma once

#include <memory>
#include <utility>

#include "tiers/slab_memory.h"
#include "transfer/cuda/device_memory.h"

namespace kvstore::tiers {

class CudaSlabMemory final : public SlabMemory {
 public:
  static absl::StatusOr<std::unique_ptr<SlabMemory>> Create(
      std::shared_ptr<transfer::CudaContext> context, uint64_t bytes);

  std::byte* host_data() const override { return nullptr; }
  uint64_t bytes() const override { return memory_->bytes(); }
  CUdeviceptr device_data() const { return memory_->data(); }
  void StoreGeneration(uint64_t slot_offset, uint64_t generation) override {
    generations_.Store(slot_offset, generation);
  }
  // Device memory is there from the start.
  absl::Status Prepare(uint64_t /*offset*/, uint64_t /*bytes*/) const override {
    return absl::OkStatus();
  }
  // Importers keep what they map; nobody else gets it meanwhile.
  void Discard() override {}
  // The descriptor of device memory gives all rights, whatever `access` is: the client's mapping
  // has them as asked, and checksums tell what somebody else of the tenant wrote.
  absl::StatusOr<SlabExport> Export(MemoryAccess access) const override;

 private:
  CudaSlabMemory(std::unique_ptr<transfer::DeviceMemory> memory,
                 transfer::GenerationTable generations)
      : memory_(std::move(memory)), generations_(std::move(generations)) {}

  const std::unique_ptr<transfer::DeviceMemory> memory_;
  transfer::GenerationTable generations_;
};

}  // namespace kvstore::tiers
