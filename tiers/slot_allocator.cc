#include "tiers/slot_allocator.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvstore::tiers {
namespace {

constexpr uint64_t kSlotAlignment = 4096;
constexpr uint64_t kSlotsMax = uint64_t{1} << 24;  // of a slab: index::PrefixIndex has 24 bits

// For callers that broke the contract in a way that would give one slot two owners.
[[noreturn]] void Die(const char* what, PageId page) {
  std::fprintf(stderr, "SlotAllocator: %s: slab %u slot %u generation %llu\n", what, page.slab,
               page.slot, static_cast<unsigned long long>(page.generation));
  std::abort();
}

bool IsUsed(uint64_t generation) { return (generation & 1) != 0; }

}  // namespace

SlotAllocator::SlotAllocator(Options options)
    : options_(std::move(options)), slabs_(options_.num_slabs) {
  // Lowest index on top: slabs are taken in order.
  free_slabs_.reserve(options_.num_slabs);
  for (uint32_t slab = options_.num_slabs; slab-- > 0;) free_slabs_.push_back(slab);
  generation_high_ = options_.generation_base;
}

absl::Status SlotAllocator::OpenPool(PoolId pool, uint64_t slot_bytes) {
  const uint64_t slab_bytes = options_.slab_bytes;
  if (slot_bytes == 0 || slot_bytes % kSlotAlignment != 0 || slot_bytes > slab_bytes ||
      slab_bytes / slot_bytes > kSlotsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "slot size ", slot_bytes, " must be a multiple of 4096, above 0 and at most the slab size ",
        slab_bytes, ", of which at most ", kSlotsMax, " may fit in it"));
  }
  const auto [it, is_new] = pools_.try_emplace(pool);
  if (!is_new && it->second.slot_bytes != slot_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("pool ", pool.value(), " is open with slots of ",
                                                   it->second.slot_bytes, " bytes, not ",
                                                   slot_bytes));
  }
  it->second.slot_bytes = slot_bytes;
  return absl::OkStatus();
}

absl::StatusOr<PageId> SlotAllocator::Reserve(PoolId pool_id) {
  const auto it = pools_.find(pool_id);
  if (it == pools_.end()) {
    return absl::NotFoundError(absl::StrCat("pool ", pool_id.value(), " is not open"));
  }
  Pool& pool = it->second;
  if (pool.partial.empty()) {
    if (free_slabs_.empty()) {
      // The usual answer of a full tier, once for every page that is saved: short, to be cheap.
      return absl::ResourceExhaustedError("no free slot");
    }
    if (absl::Status status = Assign(CheapestFreeSlab(pool_id), pool_id, pool); !status.ok()) {
      return status;
    }
  }
  const uint32_t index = pool.partial.back();
  Slab& slab = slabs_[index];
  if (slab.free_slots.empty()) CutSlot(slab);
  return Take(index, slab.free_slots.back(), pool);
}

absl::StatusOr<PageId> SlotAllocator::ReserveAt(PoolId pool_id, uint32_t index, uint32_t slot) {
  const auto it = pools_.find(pool_id);
  if (it == pools_.end()) {
    return absl::NotFoundError(absl::StrCat("pool ", pool_id.value(), " is not open"));
  }
  Pool& pool = it->second;
  if (index >= slabs_.size() || slot >= options_.slab_bytes / pool.slot_bytes) {
    return absl::OutOfRangeError(absl::StrCat("slab ", index, " slot ", slot, ": there are ",
                                              slabs_.size(), " slabs of ",
                                              options_.slab_bytes / pool.slot_bytes, " slots"));
  }
  Slab& slab = slabs_[index];
  if (!slab.is_assigned) {
    if (slab.withheld > 0 && slab.slot_bytes != pool.slot_bytes) {
      return absl::FailedPreconditionError(
          absl::StrCat("slab ", index, " has slots of ", slab.slot_bytes, " bytes"));
    }
    if (absl::Status status = Assign(index, pool_id, pool); !status.ok()) return status;
  } else if (slab.pool != pool_id) {
    return absl::FailedPreconditionError(absl::StrCat(
        "slab ", index, " belongs to pool ", slab.pool.value(), ", not to pool ", pool_id.value()));
  }
  while (slab.generations.size() <= slot) CutSlot(slab);
  if (slab.index_in_free[slot] >= kBad) {
    return absl::AlreadyExistsError(absl::StrCat("slab ", index, " slot ", slot, " is in use"));
  }
  if (slab.index_in_free[slot] == kWithheld) EndWithholding(index, slot);
  return Take(index, slot, pool);
}

absl::Status SlotAllocator::Withhold(uint32_t index, uint64_t slot_bytes, uint32_t slot) {
  if (index >= slabs_.size() || slot_bytes == 0 || slot >= options_.slab_bytes / slot_bytes ||
      options_.slab_bytes / slot_bytes > kSlotsMax) {
    return absl::OutOfRangeError(absl::StrCat("no slab ", index, " slot ", slot));
  }
  Slab& slab = slabs_[index];
  if (slab.is_assigned || (slab.withheld > 0 && slab.slot_bytes != slot_bytes)) {
    return absl::FailedPreconditionError(absl::StrCat("slab ", index, " is used"));
  }
  if (slab.withheld == 0) {
    free_slabs_.erase(std::find(free_slabs_.begin(), free_slabs_.end(), index));
    Cut(slab, slot_bytes, options_.slab_bytes, generation_high_);
    slab.was_assigned = true;
  }
  while (slab.generations.size() <= slot) CutSlot(slab);
  if (slab.index_in_free[slot] == kWithheld) {
    return absl::AlreadyExistsError(absl::StrCat("slab ", index, " slot ", slot, " is withheld"));
  }
  LeaveFreeList(slab, slot);
  slab.index_in_free[slot] = kWithheld;
  ++slab.withheld;
  ++withheld_slots_;
  return absl::OkStatus();
}

void SlotAllocator::Readmit(uint32_t index, uint32_t slot) {
  Slab& slab = slabs_[index];
  EndWithholding(index, slot);
  if (!slab.has_no_slot_in_use()) return;
  if (slab.is_assigned) {
    Free(index, pools_.find(slab.pool)->second);
  } else {
    free_slabs_.push_back(index);
  }
}

// The slab may be left without a slot in use.
void SlotAllocator::EndWithholding(uint32_t index, uint32_t slot) {
  Slab& slab = slabs_[index];
  slab.index_in_free[slot] = static_cast<uint32_t>(slab.free_slots.size());
  slab.free_slots.push_back(slot);
  --slab.withheld;
  --withheld_slots_;
  if (!slab.is_assigned || slab.is_closed) return;
  Pool& pool = pools_.find(slab.pool)->second;
  ++pool.free_slots;
  if (slab.index_in_partial == kNone) EnterPartial(index, pool);
}

void SlotAllocator::Release(PageId page) {
  Slab& slab = EndUse(page);
  Pool& pool = pools_.find(slab.pool)->second;
  slab.index_in_free[page.slot] = static_cast<uint32_t>(slab.free_slots.size());
  slab.free_slots.push_back(page.slot);
  if (!slab.is_closed) {
    ++pool.free_slots;
    if (slab.index_in_partial == kNone) EnterPartial(page.slab, pool);
  }
  if (slab.has_no_slot_in_use()) Free(page.slab, pool);
}

void SlotAllocator::Quarantine(PageId page) {
  Slab& slab = EndUse(page);
  slab.index_in_free[page.slot] = kBad;
  ++slab.quarantined;
  ++quarantined_pages_;
}

void SlotAllocator::Close(uint32_t index) {
  Slab& slab = slabs_[index];
  if (!slab.is_assigned || slab.is_closed) return;
  Pool& pool = pools_.find(slab.pool)->second;
  LeavePartial(index, pool);
  pool.free_slots -= slab.num_free();
  slab.is_closed = true;
}

void SlotAllocator::Reopen(uint32_t index) {
  Slab& slab = slabs_[index];
  if (!slab.is_closed) return;
  slab.is_closed = false;
  Pool& pool = pools_.find(slab.pool)->second;
  pool.free_slots += slab.num_free();
  if (slab.num_free() > 0) EnterPartial(index, pool);
}

bool SlotAllocator::IsCurrent(PageId page) const {
  if (page.slab >= slabs_.size() || !IsUsed(page.generation)) return false;
  const Slab& slab = slabs_[page.slab];
  return page.slot < slab.generations.size() && slab.generations[page.slot] == page.generation;
}

uint64_t SlotAllocator::OffsetInSlab(PageId page) const {
  return uint64_t{page.slot} * slabs_[page.slab].slot_bytes;
}

uint64_t SlotAllocator::SlotBytes(uint32_t slab) const {
  return slab < slabs_.size() && slabs_[slab].is_assigned ? slabs_[slab].slot_bytes : 0;
}

uint64_t SlotAllocator::PoolSlotBytes(PoolId pool_id) const {
  const auto it = pools_.find(pool_id);
  return it == pools_.end() ? 0 : it->second.slot_bytes;
}

uint64_t SlotAllocator::FreeSlots(PoolId pool_id) const {
  const auto it = pools_.find(pool_id);
  if (it == pools_.end()) return 0;
  const Pool& pool = it->second;
  return pool.free_slots + free_slabs_.size() * (options_.slab_bytes / pool.slot_bytes);
}

absl::Status SlotAllocator::Assign(uint32_t index, PoolId pool_id, Pool& pool) {
  if (options_.on_assign) {
    if (absl::Status status = options_.on_assign(index, pool_id); !status.ok()) return status;
  }
  Slab& slab = slabs_[index];
  if (slab.withheld == 0)
    free_slabs_.erase(std::find(free_slabs_.begin(), free_slabs_.end(), index));
  if (!slab.was_assigned || slab.slot_bytes != pool.slot_bytes)
    Cut(slab, pool.slot_bytes, options_.slab_bytes, generation_high_);
  slab.pool = pool_id;
  slab.is_assigned = true;
  slab.was_assigned = true;
  slab.index_in_pool = static_cast<uint32_t>(pool.slabs.size());
  pool.slabs.push_back(index);
  pool.free_slots += slab.num_free();
  EnterPartial(index, pool);
  return absl::OkStatus();
}

uint32_t SlotAllocator::CheapestFreeSlab(PoolId pool) const {
  const auto cost = [this, pool](uint32_t index) -> uint32_t {
    if (options_.assign_cost) return options_.assign_cost(index, pool);
    if (!slabs_[index].was_assigned) return 1;
    return slabs_[index].pool == pool ? 0 : 2;
  };
  uint32_t best = free_slabs_.back();
  uint32_t best_cost = cost(best);
  for (size_t i = free_slabs_.size() - 1; i-- > 0 && best_cost > 0;) {
    const uint32_t c = cost(free_slabs_[i]);
    if (c < best_cost) {
      best = free_slabs_[i];
      best_cost = c;
    }
  }
  return best;
}

void SlotAllocator::Free(uint32_t index, Pool& pool) {
  Slab& slab = slabs_[index];
  Close(index);  // its slots leave the pool
  slab.is_closed = false;
  const uint32_t moved = pool.slabs.back();
  pool.slabs[slab.index_in_pool] = moved;
  slabs_[moved].index_in_pool = slab.index_in_pool;
  pool.slabs.pop_back();
  slab.index_in_pool = kNone;
  slab.is_assigned = false;
  free_slabs_.push_back(index);
  if (options_.on_free) options_.on_free(index);
}

void SlotAllocator::Cut(Slab& slab, uint64_t slot_bytes, uint64_t slab_bytes, uint64_t base) {
  slab.slot_bytes = slot_bytes;
  slab.num_slots = static_cast<uint32_t>(slab_bytes / slot_bytes);
  slab.generation_base = (base + 1) & ~uint64_t{1};
  slab.generations.clear();
  slab.free_slots.clear();
  slab.index_in_free.clear();
}

void SlotAllocator::CutSlot(Slab& slab) {
  const uint32_t slot = static_cast<uint32_t>(slab.generations.size());
  slab.generations.push_back(slab.generation_base);
  slab.index_in_free.push_back(static_cast<uint32_t>(slab.free_slots.size()));
  slab.free_slots.push_back(slot);
}

void SlotAllocator::LeaveFreeList(Slab& slab, uint32_t slot) {
  const uint32_t position = slab.index_in_free[slot];
  const uint32_t last = slab.free_slots.back();
  slab.free_slots[position] = last;
  slab.index_in_free[last] = position;
  slab.free_slots.pop_back();
}

PageId SlotAllocator::Take(uint32_t index, uint32_t slot, Pool& pool) {
  Slab& slab = slabs_[index];
  LeaveFreeList(slab, slot);
  slab.index_in_free[slot] = kNone;
  const uint64_t generation = ++slab.generations[slot];
  generation_high_ = std::max(generation_high_, generation);
  ++slab.used;
  --pool.free_slots;
  ++used_pages_;
  used_bytes_ += slab.slot_bytes;
  if (slab.num_free() == 0) LeavePartial(index, pool);
  return {index, slot, generation};
}

SlotAllocator::Slab& SlotAllocator::EndUse(PageId page) {
  if (!IsCurrent(page)) Die("release of a page that is not in use", page);
  Slab& slab = slabs_[page.slab];
  const uint64_t generation = ++slab.generations[page.slot];
  generation_high_ = std::max(generation_high_, generation);
  --slab.used;
  --used_pages_;
  used_bytes_ -= slab.slot_bytes;
  return slab;
}

void SlotAllocator::EnterPartial(uint32_t index, Pool& pool) {
  slabs_[index].index_in_partial = static_cast<uint32_t>(pool.partial.size());
  pool.partial.push_back(index);
}

void SlotAllocator::LeavePartial(uint32_t index, Pool& pool) {
  Slab& slab = slabs_[index];
  if (slab.index_in_partial == kNone) return;
  const uint32_t moved = pool.partial.back();
  pool.partial[slab.index_in_partial] = moved;
  slabs_[moved].index_in_partial = slab.index_in_partial;
  pool.partial.pop_back();
  slab.index_in_partial = kNone;
}

absl::Status SlotAllocator::CheckSlab(uint32_t index) const {
  const Slab& slab = slabs_[index];
  const auto wrong = [index](const char* what) {
    return absl::InternalError(absl::StrCat("slab ", index, ": ", what));
  };
  uint32_t used = 0, quarantined = 0, withheld = 0, free = 0;
  if (slab.generations.size() != slab.index_in_free.size()) return wrong("tables differ in size");
  if (slab.generations.size() > slab.num_slots) return wrong("more slots cut than fit");
  for (uint32_t slot = 0; slot < slab.generations.size(); ++slot) {
    const uint32_t position = slab.index_in_free[slot];
    if (IsUsed(slab.generations[slot]) != (position == kNone)) return wrong("odd is not used");
    if (slab.generations[slot] > generation_high_ &&
        slab.generations[slot] != slab.generation_base) {
      return wrong("generation above the highest");
    }
    if (position == kNone) {
      ++used;
    } else if (position == kBad) {
      ++quarantined;
    } else if (position == kWithheld) {
      ++withheld;
    } else if (position >= slab.free_slots.size() || slab.free_slots[position] != slot) {
      return wrong("a free slot is not in the free list");
    } else {
      ++free;
    }
  }
  if (free != slab.free_slots.size()) return wrong("free list holds a slot twice");
  if (used != slab.used || quarantined != slab.quarantined || withheld != slab.withheld)
    return wrong("counters are off");
  if (!slab.is_assigned && used + quarantined != 0) return wrong("free with slots in use");
  if (slab.is_assigned && slab.has_no_slot_in_use()) return wrong("assigned without slots in use");
  if (slab.is_closed && !slab.is_assigned) return wrong("free and closed");
  const bool is_partial = slab.is_assigned && slab.num_free() > 0 && !slab.is_closed;
  if (is_partial != (slab.index_in_partial != kNone)) return wrong("partial list is off");
  return absl::OkStatus();
}

absl::Status SlotAllocator::CheckInvariants() const {
  uint64_t used = 0, used_bytes = 0, quarantined = 0, withheld = 0, assigned = 0, waiting = 0;
  for (uint32_t index = 0; index < slabs_.size(); ++index) {
    if (absl::Status status = CheckSlab(index); !status.ok()) return status;
    used += slabs_[index].used;
    used_bytes += slabs_[index].used * slabs_[index].slot_bytes;
    quarantined += slabs_[index].quarantined;
    withheld += slabs_[index].withheld;
    assigned += slabs_[index].is_assigned ? 1 : 0;
    waiting += !slabs_[index].is_assigned && slabs_[index].withheld > 0;
  }
  if (used != used_pages_ || used_bytes != used_bytes_ || quarantined != quarantined_pages_ ||
      withheld != withheld_slots_) {
    return absl::InternalError("total counters are off");
  }
  if (assigned + waiting + free_slabs_.size() != slabs_.size()) {
    return absl::InternalError("a slab is neither free nor assigned, or both");
  }
  for (uint32_t index : free_slabs_) {
    if (slabs_[index].is_assigned) return absl::InternalError("an assigned slab is listed as free");
  }
  uint64_t in_pools = 0;
  for (const auto& [id, pool] : pools_) {
    uint64_t free_slots = 0;
    for (size_t i = 0; i < pool.slabs.size(); ++i) {
      const Slab& slab = slabs_[pool.slabs[i]];
      if (!slab.is_assigned || slab.pool != id || slab.index_in_pool != i) {
        return absl::InternalError(absl::StrCat("pool ", id.value(), " lists a foreign slab"));
      }
      if (!slab.is_closed) free_slots += slab.num_free();
    }
    for (size_t i = 0; i < pool.partial.size(); ++i) {
      const Slab& slab = slabs_[pool.partial[i]];
      if (slab.pool != id || slab.index_in_partial != i || slab.num_free() == 0) {
        return absl::InternalError(absl::StrCat("pool ", id.value(), ": partial list is off"));
      }
    }
    if (free_slots != pool.free_slots) {
      return absl::InternalError(absl::StrCat("pool ", id.value(), ": free slots are off"));
    }
    in_pools += pool.slabs.size();
  }
  if (in_pools != assigned) return absl::InternalError("an assigned slab is in no pool");
  return absl::OkStatus();
}

}  // namespace kvstore::tiers
