// SlabMemory is the memory of one slab of a memory tier, wherever it is, with its generation table
// and a way to hand both to another process. A slab's memory serves one tenant for ever: another
// tenant gets another SlabMemory.
//
// Thread-safe, except StoreGeneration(): core thread. Destruction frees the memory as soon as no
// other process maps it; that may take tens of milliseconds and belongs on a background thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/memory_socket.h"
#include "kvstore/base/unique_fd.h"
#include "transfer/memory/generation_table.h"
#include "transfer/memory/sealed_memory.h"

namespace kvstore::tiers {

// A slab for another process: descriptors of its own, with the access that was asked for.
struct SlabExport {
  UniqueFd slab;
  UniqueFd generations;
  uint64_t slab_bytes = 0;
};

// Tells the memory of a slab from any other (inode numbers).
struct SlabMark {
  uint64_t slab = 0;
  uint64_t generations = 0;
  friend bool operator==(const SlabMark&, const SlabMark&) = default;
};

class SlabMemory {
 public:
  virtual ~SlabMemory() = default;
  virtual std::byte* host_data() const = 0;  // null: not in host memory
  virtual uint64_t bytes() const = 0;
  // Sets the generation of the slot at `slot_offset`, before any byte of its next use is written.
  virtual void StoreGeneration(uint64_t slot_offset, uint64_t generation) = 0;
  // Makes a range ready for use: faulted in, locked, registered. Idempotent. Errors:
  // ResourceExhausted, no memory or no right to lock.
  virtual absl::Status Prepare(uint64_t offset, uint64_t bytes) const = 0;
  // Frees the memory although other processes may still map it; they read zeros. The content is of
  // no use afterwards.
  virtual void Discard() = 0;
  virtual absl::StatusOr<SlabExport> Export(MemoryAccess access) const = 0;

  // For memory that outlives its process. All uses that there were of its slots end.
  virtual void MoveGenerationsTo(uint64_t /*generation*/) {}
  virtual SlabMark mark() const { return {}; }
};

// In host memory: a sealed memfd.
class HostSlabMemory final : public SlabMemory {
 public:
  enum class Locking { kOff, kLock };
  using Life = transfer::GenerationTable::Life;
  static absl::StatusOr<std::unique_ptr<SlabMemory>> Create(transfer::SealedMemory::Options options,
                                                            Locking locking,
                                                            Life life = Life::kOwn);
  // Of a process that has died: both descriptors as they were kept.
  // Errors: those of SealedMemory::Adopt().
  static absl::StatusOr<std::unique_ptr<HostSlabMemory>> Adopt(UniqueFd slab, UniqueFd generations,
                                                               uint64_t bytes, Locking locking);
  std::byte* host_data() const override { return memory_.data(); }
  uint64_t bytes() const override { return memory_.bytes(); }
  void StoreGeneration(uint64_t slot_offset, uint64_t generation) override {
    generations_.Store(slot_offset, generation);
  }
  absl::Status Prepare(uint64_t offset, uint64_t bytes) const override;
  void Discard() override;
  absl::StatusOr<SlabExport> Export(MemoryAccess access) const override;
  void MoveGenerationsTo(uint64_t generation) override { generations_.MoveAllTo(generation); }
  SlabMark mark() const override { return {memory_.inode(), generations_.inode()}; }
  // For who keeps the memory.
  int slab_descriptor() const { return memory_.descriptor(); }
  int generations_descriptor() const { return generations_.descriptor(); }

 private:
  HostSlabMemory(transfer::SealedMemory memory, transfer::GenerationTable generations,
                 Locking locking)
      : memory_(std::move(memory)), generations_(std::move(generations)), locking_(locking) {}

  transfer::SealedMemory memory_;
  transfer::GenerationTable generations_;
  const Locking locking_;
};

}  // namespace kvstore::tiers
