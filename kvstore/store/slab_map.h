// SlabMap knows which block lies in which slot of one tier: the way back from memory to blocks,
// which the index does not have. It answers what emptying a slab would cost, and what to evict.
//
// Confined to the core thread. 4 bytes a slot that was used since its slab was given to its pool; a
// slab is known while one of its slots is in use or quarantined.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kvstore/base/page_id.h"
#include "kvstore/base/strong_id.h"
#include "kvstore/index/prefix_index.h"

namespace kvstore::store {

class SlabMap {
 public:
  struct Slab {
    uint32_t id = 0;
    uint64_t use = 0;  // differs for every time that the slab was given to a pool
    PoolId pool;
    uint32_t used = 0;
    uint32_t quarantined = 0;           // such a slab cannot be emptied in this run
    std::vector<index::NodeId> blocks;  // [slot]; kNoNode: free, quarantined or without a block
  };

  // The slot is in use, by `block`; kNoNode for a page that is nobody's copy.
  void Take(PageId page, PoolId pool, index::NodeId block) {
    Slab& slab = Find(page.slab);
    slab.pool = pool;
    if (page.slot >= slab.blocks.size()) Grow(slab, page.slot);
    slab.blocks[page.slot] = block;
    ++slab.used;
  }
  // The slot is not in use any more. Requires: Take().
  void Release(PageId page) {
    Slab& slab = Find(page.slab);
    slab.blocks[page.slot] = index::kNoNode;
    --slab.used;
    if (slab.used == 0 && slab.quarantined == 0) Forget(page.slab);
  }
  void Quarantine(PageId page) {
    ++Find(page.slab).quarantined;
    Release(page);
  }

  // Null: no slot of it is in use.
  const Slab* Look(uint32_t slab) const {
    const auto it = slabs_.find(slab);
    return it == slabs_.end() ? nullptr : it->second.get();
  }
  // Calls `visit(const Slab&)` for each slab of `pool`, in no order. O(slabs of the tier).
  template <typename Visit>
  void ForEachSlabOf(PoolId pool, Visit visit) const {
    for (const auto& [id, slab] : slabs_) {
      if (slab->pool == pool) visit(*slab);
    }
  }
  size_t memory_bytes() const;

 private:
  Slab& Find(uint32_t id) {
    if (last_ == nullptr || last_->id != id) last_ = &FindOrAdd(id);
    return *last_;
  }
  Slab& FindOrAdd(uint32_t id);
  void Forget(uint32_t id);
  static void Grow(Slab& slab, uint32_t slot);

  absl::flat_hash_map<uint32_t, std::unique_ptr<Slab>> slabs_;  // by slab id
  uint64_t last_use_ = 0;
  Slab* last_ = nullptr;  // looked up; most calls come in runs on one slab
};

}  // namespace kvstore::store
