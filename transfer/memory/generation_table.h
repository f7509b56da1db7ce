// GenerationTable: which use of its slot each page of one slab is in, readable by every process
// that maps the slab, writable only here.
//
// One uint64_t for each 4 KiB of the slab; the slot at offset o has its generation at index o /
// 4096 (kvstore/base/memory_socket.h). How a reader uses it: load (acquire), copy the page, acquire
// fence, load again. Both equal to the generation in its lease: the copy is of that use. Otherwise
// it is a miss. The checksum then says whether the bytes are right. How a writer uses it: the
// generation changes *before* the slot's bytes do. Store() is a full barrier, because the bytes are
// written with streaming stores, which a release does not order.
//
// Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"
#include "transfer/memory/sealed_memory.h"

namespace kvstore::transfer {

class GenerationTable {
 public:
  // kKept: the process that comes after this one can go on writing it (Adopt()). Its readers are
  // then kept from writing by their descriptors and by the inode's mode, no longer by a seal: a
  // process of the daemon's own uid can get around those, and cause misses.
  enum class Life { kOwn, kKept };
  // Errors: those of SealedMemory::Create().
  static absl::StatusOr<GenerationTable> Create(uint64_t slab_bytes, Life life = Life::kOwn);
  // The table of a slab that outlived its process. Errors: those of SealedMemory::Adopt().
  static absl::StatusOr<GenerationTable> Adopt(UniqueFd fd, uint64_t slab_bytes);

  void Store(uint64_t slot_offset, uint64_t generation) {
    Cell(slot_offset).exchange(generation, std::memory_order_seq_cst);
  }
  uint64_t Load(uint64_t slot_offset) const {
    return Cell(slot_offset).load(std::memory_order_acquire);
  }
  // Ends all uses that there were: every slot that had a generation has this one.
  void MoveAllTo(uint64_t generation);
  int descriptor() const { return memory_.descriptor(); }
  uint64_t inode() const { return memory_.inode(); }
  // Read-only, always.
  absl::StatusOr<UniqueFd> Export() const { return memory_.Export(MemoryAccess::kReadOnly); }

 private:
  explicit GenerationTable(SealedMemory memory) : memory_(std::move(memory)) {}
  std::atomic_ref<uint64_t> Cell(uint64_t slot_offset) const {
    return std::atomic_ref<uint64_t>(
        reinterpret_cast<uint64_t*>(memory_.data())[slot_offset / 4096]);
  }

  SealedMemory memory_;
};

}  // namespace kvstore::transfer
