// Which slot of which slab is free: the bookkeeping that every tier shares. No memory, no I/O.
//
// A tier's space is a fixed number of slabs of equal size. A slab is free, or belongs to one pool
// and is cut into slots of that pool's slot size. Freed slabs may go to any pool; whether memory
// must be replaced on the way (another tenant) is the tier's business, told by `on_assign`.
//
// Confined to the core thread. Invariants (CheckInvariants): a slot is in exactly one of {free
// list, used, quarantined, withheld}; a slab with none of the last three is free; generations only
// grow; odd generation == used; of a closed slab nothing is handed out.
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
    // Called when a free slab is given to a pool, before its first slot is handed out. An error
    // leaves the slab free and is returned by Reserve(). Optional.
    std::function<absl::Status(uint32_t slab, PoolId pool)> on_assign;
    // Called when a slab becomes free. Optional.
    std::function<void(uint32_t slab)> on_free;
    // What it costs to give free slab `slab` to `pool`; the cheapest is taken, of equals the one
    // freed last. Pure. Default: 0 for the slab's last pool, 1 for a slab never used, 2 for another
    // pool's.
    std::function<uint32_t(uint32_t slab, PoolId pool)> assign_cost;
  };
  explicit SlotAllocator(Options options);

  // Idempotent for the same slot size.
  // Errors: InvalidArgument, slot_bytes is 0, not a multiple of 4096, or above slab_bytes, or the
  // pool is open with another slot size.
  absl::Status OpenPool(PoolId pool, uint64_t slot_bytes);
  // O(1); O(free slabs) when the pool needs another slab.
  // Errors: ResourceExhausted; NotFound, unknown pool; what on_assign returned.
  absl::StatusOr<PageId> Reserve(PoolId pool);
  // Marks a slot as used that a durable tier found in use (slab assigned to `pool` if it was free).
  // Errors: AlreadyExists, the slot is used; FailedPrecondition, the slab belongs to another pool;
  // OutOfRange.
  absl::StatusOr<PageId> ReserveAt(PoolId pool, uint32_t slab, uint32_t slot);
  // Keeps a slot of a slab that is free from being handed out until ReserveAt() or Readmit(): it
  // has content of an earlier process. The slab is nobody's, with that slot size, until ReserveAt()
  // gives it to a pool. Before anything is reserved. Errors: OutOfRange; FailedPrecondition, the
  // slab has another slot size or is used; AlreadyExists, the slot is withheld.
  absl::Status Withhold(uint32_t slab, uint64_t slot_bytes, uint32_t slot);
  // A withheld slot is free from here on. Requires: it is withheld.
  void Readmit(uint32_t slab, uint32_t slot);
  // Require IsCurrent(page); the process aborts otherwise: a page released twice would soon have
  // two owners.
  void Release(PageId page);
  void Quarantine(PageId page);

  // No slot of the slab is handed out until it is free again, or reopened. Ignored for a slab that
  // is free, or closed / open already.
  void Close(uint32_t slab);
  void Reopen(uint32_t slab);

  // True while `page` names the present use of its slot.
  bool IsCurrent(PageId page) const;
  uint64_t OffsetInSlab(PageId page) const;   // bytes; requires that page.slab is in use
  uint64_t SlotBytes(uint32_t slab) const;    // 0: the slab is free
  uint64_t PoolSlotBytes(PoolId pool) const;  // 0 for an unknown pool
  uint64_t FreeSlots(PoolId pool) const;      // free slabs included; 0 for an unknown pool

  uint64_t used_pages() const { return used_pages_; }
  uint64_t used_bytes() const { return used_bytes_; }
  uint64_t quarantined_pages() const { return quarantined_pages_; }
  uint64_t withheld_slots() const { return withheld_slots_; }
  uint64_t capacity_bytes() const { return uint64_t{options_.num_slabs} * options_.slab_bytes; }
  absl::Status CheckInvariants() const;

 private:
  struct Slab {
    PoolId pool;  // last pool while free
    bool is_assigned = false;
    bool was_assigned = false;
    bool is_closed = false;   // its free slots do not count as its pool's
    uint64_t slot_bytes = 0;  // last geometry while free
    uint32_t num_slots = 0;
    uint32_t used = 0;
    uint32_t quarantined = 0;
    uint32_t withheld = 0;
    uint32_t index_in_partial = kNone;  // position in Pool::partial
    uint32_t index_in_pool = kNone;     // position in Pool::slabs
    uint64_t generation_base = 0;       // of slots that were never handed out in this geometry
    // Slots are cut as they are first needed, so that giving a slab to a pool costs nothing: [0,
    // num_slots cut so far).
    std::vector<uint64_t> generations;
    std::vector<uint32_t> free_slots;  // cut and free. LIFO: the slot freed last is warm
    std::vector<uint32_t>
        index_in_free;  // [cut] position in free_slots; kNone: used, kBad: quarantined, kWithheld

    uint32_t num_free() const { return num_slots - used - quarantined - withheld; }
    bool has_no_slot_in_use() const { return used == 0 && quarantined == 0 && withheld == 0; }
  };
  struct Pool {
    uint64_t slot_bytes = 0;
    uint64_t free_slots = 0;  // in its slabs
    std::vector<uint32_t> slabs;
    std::vector<uint32_t> partial;  // slabs with a free slot
  };
  static constexpr uint32_t kNone = UINT32_MAX;
  static constexpr uint32_t kBad = UINT32_MAX - 1;
  static constexpr uint32_t kWithheld = UINT32_MAX - 2;

  absl::Status Assign(uint32_t slab, PoolId pool_id, Pool& pool);
  uint32_t CheapestFreeSlab(PoolId pool) const;
  void Free(uint32_t slab, Pool& pool);
  static void Cut(Slab& slab, uint64_t slot_bytes, uint64_t slab_bytes, uint64_t base);
  void CutSlot(Slab& slab);
  void EndWithholding(uint32_t index, uint32_t slot);
  static void LeaveFreeList(Slab& slab, uint32_t slot);
  PageId Take(uint32_t slab, uint32_t slot, Pool& pool);
  // Ends the present use of the slot; it is neither free nor quarantined afterwards.
  Slab& EndUse(PageId page);
  void EnterPartial(uint32_t slab, Pool& pool);
  void LeavePartial(uint32_t slab, Pool& pool);
  absl::Status CheckSlab(uint32_t slab) const;

  const Options options_;
  std::vector<Slab> slabs_;           // [num_slabs]
  std::vector<uint32_t> free_slabs_;  // LIFO
  absl::flat_hash_map<PoolId, Pool> pools_;
  uint64_t generation_high_ =
      0;  // no generation handed out is above; a slab with a new geometry starts above it
  uint64_t used_pages_ = 0;
  uint64_t used_bytes_ = 0;
  uint64_t quarantined_pages_ = 0;
  uint64_t withheld_slots_ = 0;
};

}  // namespace kvstore::tiers
