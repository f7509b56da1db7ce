// Which slot of which slab is free: the bookkeeping that every tier shares. No memory, no I/O.
//
// A tier's space is a fixed number of slabs of equal size. A slab is free, or belongs to one pool and is cut into slots of that pool's
// slot size. Freed slabs may go to any pool; whether memory must be replaced on the way (another tenant) is the tier's business, told
// by `on_assign`.
//
// Confined to the core thread. Invariants (CheckInvariants): a slot is in exactly one of {free list, used, quarantined}; a slab with no
// used and no quarantined slot is free; generations only grow; odd generation == used.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tiers/tier.h"

namespace kvstore::tiers {

class SlotAllocator {
 public:
  struct Options {
    uint32_t num_slabs = 0;
    uint64_t slab_bytes = 0;
    // First generation of every slot, even. Durable tiers pass one above all that they ever used.
    uint64_t generation_base = 0;
    // Called when a free slab is given to a pool, before its first slot is handed out. An error leaves the slab free and is returned
    // by Reserve(). Optional.
    std::function<absl::Status(uint32_t slab, PoolId pool)> on_assign;
    // Called when a slab becomes free. Optional.
    std::function<void(uint32_t slab)> on_free;
  };
  explicit SlotAllocator(Options options);

  // Errors: InvalidArgument, slot_bytes is 0, not a multiple of 4096, or above slab_bytes.
  absl::Status OpenPool(PoolId pool, uint64_t slot_bytes);
  // O(1). Errors: ResourceExhausted; NotFound, unknown pool; what on_assign returned.
  absl::StatusOr<PageId> Reserve(PoolId pool);
  // Marks a slot as used that a durable tier found in use (slab assigned to `pool` if it was free).
  // Errors: AlreadyExists, the slot is used; FailedPrecondition, the slab belongs to another pool; OutOfRange.
  absl::StatusOr<PageId> ReserveAt(PoolId pool, uint32_t slab, uint32_t slot);
  // Requires IsCurrent(page).
  void Release(PageId page);
  void Quarantine(PageId page);

  // True while `page` names the present use of its slot.
  bool IsCurrent(PageId page) const;
  uint64_t OffsetInSlab(PageId page) const;  // bytes
  uint64_t SlotBytes(uint32_t slab) const;   // 0: the slab is free
  std::vector<PageId> PagesOfCheapestSlab(PoolId pool) const;
  uint64_t FreeSlots(PoolId pool) const;

  uint64_t used_pages() const { return used_pages_; }
  uint64_t used_bytes() const { return used_bytes_; }
  uint64_t quarantined_pages() const { return quarantined_pages_; }
  uint64_t capacity_bytes() const { return uint64_t{options_.num_slabs} * options_.slab_bytes; }
  absl::Status CheckInvariants() const;

 private:
  struct Slab {
    PoolId pool;
    bool is_assigned = false;
    uint32_t used = 0;
    uint32_t quarantined = 0;
    std::vector<uint32_t> free_slots;    // LIFO: the slot freed last is warm
    std::vector<uint64_t> generations;   // [slots], kept while the slab changes pools with the same geometry, else all raised
    uint32_t index_in_partial = kNone;   // position in Pool::partial
  };
  struct Pool {
    uint64_t slot_bytes = 0;
    std::vector<uint32_t> slabs;
    std::vector<uint32_t> partial;  // slabs with a free slot
  };
  static constexpr uint32_t kNone = UINT32_MAX;

  absl::Status Assign(uint32_t slab, PoolId pool);
  void Free(uint32_t slab);
  PageId Take(uint32_t slab, uint32_t slot);
  void UpdatePartial(uint32_t slab);

  const Options options_;
  std::vector<Slab> slabs_;           // [num_slabs]
  std::vector<uint32_t> free_slabs_;  // LIFO
  absl::flat_hash_map<PoolId, Pool> pools_;
  uint64_t generation_high_ = 0;      // highest generation handed out; a re-cut slab starts above it
  uint64_t used_pages_ = 0;
  uint64_t used_bytes_ = 0;
  uint64_t quarantined_pages_ = 0;
};

}  // namespace kvstore::tiers
