// Leaf-first LRU: the order in which the blocks of one tier are evicted.
//
// One list a pool, oldest last, of *leaves*: blocks without a child in the tier. A block enters
// when it becomes a leaf and leaves when it gets a child, so the victim is found at once, and
// touching a prefix of thousands of blocks moves one of them. A parent whose last child was evicted
// is usually the next victim: it enters at the old end, behind the few that are older.
//
// Confined to one thread. 8 bytes a node.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kvstore/base/chunked_vector.h"
#include "kvstore/base/strong_id.h"

namespace kvstore::policy {

class LeafLru {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;

  // Requires: `node` is in no list / in the list of `pool`. O(1).
  void InsertNewest(PoolId pool, uint32_t node) { LinkFirst(ListOf(pool), node); }
  void InsertOldest(PoolId pool, uint32_t node) { LinkLast(ListOf(pool), node); }
  // Inserts `node` where its age belongs: behind the nodes at the old end for which
  // `is_older(other)` holds. After `walk_max` of those it becomes the newest instead: the search
  // stays bounded, and what is in doubt stays longer.
  template <typename IsOlder>
  void InsertByAge(PoolId pool, uint32_t node, uint32_t walk_max, IsOlder is_older) {
    List& list = ListOf(pool);
    uint32_t older = list.last;
    if (older == kNone || !is_older(older)) return LinkLast(list, node);
    for (uint32_t walked = 1; walked < walk_max; ++walked) {
      const uint32_t next = links_[older].newer;
      if (next == kNone || !is_older(next)) return LinkNewerThan(list, node, older);
      older = next;
    }
    LinkFirst(list, node);
  }
  void Remove(PoolId pool, uint32_t node) { Unlink(ListOf(pool), node); }
  void Touch(PoolId pool, uint32_t node) {
    List& list = ListOf(pool);
    if (list.first == node) return;
    Unlink(list, node);
    LinkFirst(list, node);
  }

  // The oldest node of `pool`, kNone if it has none.
  uint32_t Oldest(PoolId pool) const {
    return pool.value() < lists_.size() ? lists_[pool.value()].last : kNone;
  }
  // The node touched just after `node`, kNone at the newest.
  uint32_t NextNewer(uint32_t node) const { return links_[node].newer; }

  // The oldest node for which `can_evict(node)` holds. Those met before it become the newest. Looks
  // at most at `scan_max` nodes.
  template <typename CanEvict>
  std::optional<uint32_t> Victim(PoolId pool, uint32_t scan_max, CanEvict can_evict) {
    if (pool.value() >= lists_.size()) return std::nullopt;
    List& list = ListOf(pool);
    for (uint32_t i = 0; i < scan_max && list.last != kNone; ++i) {
      const uint32_t node = list.last;
      if (can_evict(node)) return node;
      Unlink(list, node);
      LinkFirst(list, node);
    }
    return std::nullopt;
  }

  // Brings into the cache what inserting or removing `node` will read.
  void Prefetch(uint32_t node) const {
    if (node < links_.size()) __builtin_prefetch(&links_[node]);
  }
  // Nodes of all pools.
  size_t size() const { return size_; }
  size_t memory_bytes() const { return links_.memory_bytes(); }

 private:
  struct Links {
    uint32_t newer = kNone;
    uint32_t older = kNone;
  };
  struct List {
    uint32_t first = kNone;  // newest
    uint32_t last = kNone;   // oldest
  };

  List& ListOf(PoolId pool) {
    if (pool.value() >= lists_.size()) lists_.resize(pool.value() + 1);
    return lists_[pool.value()];
  }
  void LinkFirst(List& list, uint32_t node);
  void LinkLast(List& list, uint32_t node);
  void LinkNewerThan(List& list, uint32_t node, uint32_t older);
  void Unlink(List& list, uint32_t node);

  ChunkedVector<Links> links_;  // [node]
  std::vector<List> lists_;     // [PoolId]: those are dense
  size_t size_ = 0;
};

}  // namespace kvstore::policy
