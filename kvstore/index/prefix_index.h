// The prefix index: block key -> parent, copies in tiers, holds. No I/O, no policy.
//
// A node is a block that is resident or being written in some tier, or that is known only as the
// parent of one that is (a *ghost*: its own copies are gone, or recovery has not reached it). Nodes
// form trees by their parents.
//
// Confined to one thread. Node ids are dense and reused; side tables of other folders are indexed
// by them. Memory: 64 bytes a node, 17 bytes a node and tier in use, at most 7.8 bytes for the
// table (hash_table.h); with the 8 bytes a node and tier of policy::LeafLru and the 4 of a slot in
// store::SlabMap that is at most 159 bytes a block in three tiers.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kvstore/base/block_hash.h"
#include "kvstore/base/chunked_vector.h"
#include "kvstore/base/page_id.h"
#include "kvstore/base/strong_id.h"
#include "kvstore/index/hash_table.h"

namespace kvstore::index {

inline constexpr size_t kNumTiers = 3;  // tiers::kNumTierKinds; positions are tiers::TierKind
enum class CopyState : uint8_t { kAbsent = 0, kWriting = 1, kResident = 2 };

// The states of a block's copies, two bits a tier.
class CopyStates {
 public:
  CopyState operator[](size_t tier) const {
    return static_cast<CopyState>(bits_ >> (2 * tier) & 3);
  }
  void Set(size_t tier, CopyState state) {
    bits_ = static_cast<uint8_t>((bits_ & ~(3u << (2 * tier))) |
                                 (static_cast<uint32_t>(state) << (2 * tier)));
  }
  bool HasAny() const { return bits_ != 0; }
  bool HasResident() const { return (bits_ & 0b101010) != 0; }

 private:
  uint8_t bits_ = 0;
};

using NodeId = uint32_t;  // bare, because it indexes side tables everywhere
inline constexpr NodeId kNoNode = HashTable::kAbsent;

struct Node {
  BlockHash hash;
  uint64_t page_checksum = 0;
  NodeId parent = kNoNode;    // kNoNode for block 0, and for ghosts whose record has not been seen
  uint32_t num_children = 0;  // nodes, ghosts included
  uint32_t block_index = 0;
  uint32_t touched_at = 0;  // of the last touch, in units that the store chooses
  uint16_t ns = 0;          // NamespaceId
  uint16_t hits = 0;        // saturates
  uint16_t holds = 0;       // leases and moves that forbid eviction
  CopyStates copies;

  bool IsResident() const { return copies.HasResident(); }
};
static_assert(sizeof(Node) == 64, "one cache line");

class PrefixIndex {
 public:
  // `seed`: random in production, so that callers who choose hashes cannot choose collisions; fixed
  // in tests. `tiers_in_use`: columns for other tiers are not kept.
  PrefixIndex(uint64_t seed, std::array<bool, kNumTiers> tiers_in_use)
      : seed_(seed), tiers_in_use_(tiers_in_use) {}

  NodeId Find(NamespaceId ns, const BlockHash& hash) const;
  // Brings into the cache what Find() will read first.
  void PrefetchFind(NamespaceId ns, const BlockHash& hash) const {
    table_.Prefetch(HashOf(ns, hash));
  }
  // Brings into the cache what removing the node's copy in `tier` and erasing it will read, its
  // own line aside.
  void PrefetchRemoval(NodeId id, size_t tier) const;
  // Appends the leading nodes of `hashes` that are resident and follow one another: each is new.
  void MatchPrefix(NamespaceId ns, std::span<const BlockHash> hashes,
                   std::vector<NodeId>* nodes) const;
  // Finds the node, or makes one without copies. `parent` is linked if the node had none.
  NodeId FindOrInsert(NamespaceId ns, const BlockHash& hash, NodeId parent, uint32_t block_index);
  // As FindOrInsert() for a block that is known to be absent.
  NodeId Insert(NamespaceId ns, const BlockHash& hash, NodeId parent, uint32_t block_index);
  // Erases the node if it has neither copies, holds nor children, and then its ancestors for which
  // that has become true.
  void EraseIfUnused(NodeId id);

  Node& node(NodeId id) { return nodes_[id]; }
  const Node& node(NodeId id) const { return nodes_[id]; }
  bool IsLive(NodeId id) const { return id < num_ids_ && !is_free(id); }

  // Copies. BeginWrite: absent -> writing; Publish: writing -> resident; Remove: any -> absent.
  void BeginWrite(NodeId id, size_t tier, PageId page);
  void Publish(NodeId id, size_t tier);
  void Remove(NodeId id, size_t tier);
  PageId page(NodeId id, size_t tier) const;
  // Children with a copy in `tier`, being written or resident.
  uint32_t NumChildrenIn(NodeId id, size_t tier) const { return columns_[tier][id].num_children; }
  uint32_t NumChildrenAnywhere(NodeId id) const;

  size_t num_nodes() const { return num_ids_ - free_ids_.size(); }
  NodeId id_end() const { return num_ids_; }  // every live id is below
  size_t NumNodesIn(NamespaceId ns) const {
    return ns.value() < nodes_in_.size() ? nodes_in_[ns.value()] : 0;
  }
  size_t memory_bytes() const;
  absl::Status CheckInvariants() const;

 private:
#pragma pack(push, 1)
  // A page in 13 bytes. The tiers' slot allocator bounds slots to 24 bits; 48 bits of generation
  // last for years of one reuse a microsecond.
  struct Copy {
    uint32_t slab = 0;
    uint32_t num_children = 0;
    uint64_t generation : 48 = 0;
    uint64_t slot_low : 16 = 0;
    uint8_t slot_high = 0;
  };
#pragma pack(pop)
  static_assert(sizeof(Copy) == 17);

  uint64_t HashOf(NamespaceId ns, const BlockHash& hash) const;
  uint64_t HashOf(NodeId id) const { return HashOf(NamespaceId(nodes_[id].ns), nodes_[id].hash); }
  bool is_free(NodeId id) const { return nodes_[id].block_index == kFreeMark; }
  void Link(NodeId id, NodeId parent);
  void PrefetchNode(NodeId id) const;

  static constexpr uint32_t kFreeMark = UINT32_MAX;

  const uint64_t seed_;
  const std::array<bool, kNumTiers> tiers_in_use_;
  HashTable table_;
  ChunkedVector<Node> nodes_;
  std::array<ChunkedVector<Copy>, kNumTiers> columns_;
  std::vector<NodeId> free_ids_;  // LIFO
  NodeId num_ids_ = 0;
  std::vector<size_t> nodes_in_;  // [namespace]
};

}  // namespace kvstore::index
