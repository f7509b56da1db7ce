#include "kvstore/index/prefix_index.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>

namespace kvstore::index {
namespace {

constexpr std::array<bool, kNumTiers> kAllTiers = {true, true, true};
constexpr NamespaceId kNs{3};
constexpr size_t kDram = 1, kNvme = 2;

BlockHash Hash(uint64_t n) {
  BlockHash h;
  std::memcpy(h.bytes.data(), &n, sizeof n);
  return h;
}

// A chain of `n` blocks resident in DRAM; hashes first, first + 1, ...
std::vector<NodeId> AddChain(PrefixIndex& index, uint64_t first, size_t n) {
  std::vector<NodeId> ids;
  for (size_t i = 0; i < n; ++i) {
    const NodeId id = index.FindOrInsert(kNs, Hash(first + i), ids.empty() ? kNoNode : ids.back(),
                                         static_cast<uint32_t>(i));
    index.BeginWrite(id, kDram, PageId{1, static_cast<uint32_t>(i), 1});
    index.Publish(id, kDram);
    ids.push_back(id);
  }
  return ids;
}

std::vector<BlockHash> Hashes(uint64_t first, size_t n) {
  std::vector<BlockHash> hashes;
  for (size_t i = 0; i < n; ++i) hashes.push_back(Hash(first + i));
  return hashes;
}

TEST(PrefixIndex, MatchStopsAtFirstMissingBlock) {
  PrefixIndex index(1, kAllTiers);
  const auto ids = AddChain(index, 100, 40);
  index.Remove(ids[25], kDram);
  std::vector<NodeId> nodes;
  index.MatchPrefix(kNs, Hashes(100, 40), &nodes);
  EXPECT_EQ(nodes, std::vector<NodeId>(ids.begin(), ids.begin() + 25));
}

TEST(PrefixIndex, MatchStopsWhereHashesAreNoPrefix) {
  PrefixIndex index(1, kAllTiers);
  const auto ids = AddChain(index, 100, 3);
  for (const auto& [hashes, matched] : std::vector<std::pair<std::vector<BlockHash>, size_t>>{
           {{Hash(100), Hash(100), Hash(100)}, 1},
           {{Hash(100), Hash(101), Hash(100)}, 2},
           {{Hash(102), Hash(101)}, 1},
           {{Hash(101), Hash(102)}, 2}}) {
    std::vector<NodeId> nodes;
    index.MatchPrefix(kNs, hashes, &nodes);
    EXPECT_EQ(nodes.size(), matched);
  }
}

TEST(PrefixIndex, MatchReturnsWholePrefixOfAnyLength) {
  PrefixIndex index(1, kAllTiers);
  const auto ids = AddChain(index, 100, 70);
  for (size_t n = 0; n <= 70; ++n) {
    std::vector<NodeId> nodes;
    index.MatchPrefix(kNs, Hashes(100, n), &nodes);
    EXPECT_EQ(nodes.size(), n);
  }
}

TEST(PrefixIndex, BlockBeingWrittenIsNotMatched) {
  PrefixIndex index(1, kAllTiers);
  const NodeId id = index.FindOrInsert(kNs, Hash(1), kNoNode, 0);
  index.BeginWrite(id, kDram, PageId{});
  std::vector<NodeId> nodes;
  index.MatchPrefix(kNs, Hashes(1, 1), &nodes);
  EXPECT_TRUE(nodes.empty());
}

TEST(PrefixIndex, NamespacesDoNotShareBlocks) {
  PrefixIndex index(1, kAllTiers);
  AddChain(index, 100, 1);
  EXPECT_EQ(index.Find(NamespaceId(4), Hash(100)), kNoNode);
  EXPECT_NE(index.Find(kNs, Hash(100)), kNoNode);
}

TEST(PrefixIndex, GhostParentKeepsTheChainUntilItsChildIsGone) {
  PrefixIndex index(1, kAllTiers);
  const auto ids = AddChain(index, 100, 3);
  index.Remove(ids[1], kDram);
  index.EraseIfUnused(ids[1]);
  EXPECT_EQ(index.Find(kNs, Hash(101)), ids[1]) << "has a child";
  index.Remove(ids[2], kDram);
  index.EraseIfUnused(ids[2]);
  EXPECT_EQ(index.Find(kNs, Hash(101)), kNoNode);
  EXPECT_EQ(index.num_nodes(), 1u);
  EXPECT_TRUE(index.CheckInvariants().ok());
}

TEST(PrefixIndex, CountsChildrenByTier) {
  PrefixIndex index(1, kAllTiers);
  const auto ids = AddChain(index, 100, 2);
  EXPECT_EQ(index.NumChildrenIn(ids[0], kDram), 1u);
  EXPECT_EQ(index.NumChildrenIn(ids[0], kNvme), 0u);
  index.BeginWrite(ids[1], kNvme, PageId{});
  EXPECT_EQ(index.NumChildrenIn(ids[0], kNvme), 1u);
  EXPECT_EQ(index.NumChildrenAnywhere(ids[0]), 2u);
  index.Remove(ids[1], kDram);
  EXPECT_EQ(index.NumChildrenIn(ids[0], kDram), 0u);
}

TEST(PrefixIndex, LateParentTakesOverTheCopiesOfItsChild) {
  PrefixIndex index(1, kAllTiers);
  const NodeId child = index.FindOrInsert(kNs, Hash(2), kNoNode, 1);
  index.BeginWrite(child, kNvme, PageId{});
  index.Publish(child, kNvme);
  const NodeId parent = index.FindOrInsert(kNs, Hash(1), kNoNode, 0);
  EXPECT_EQ(index.FindOrInsert(kNs, Hash(2), parent, 1), child);
  EXPECT_EQ(index.NumChildrenIn(parent, kNvme), 1u);
  EXPECT_TRUE(index.CheckInvariants().ok());
}

// Against a plain map, with hashes that collide in their low words.
TEST(PrefixIndex, AgreesWithAMapUnderRandomInsertAndErase) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  PrefixIndex index(random(), kAllTiers);
  std::map<uint64_t, NodeId> reference;
  for (int step = 0; step < 200'000; ++step) {
    const uint64_t key = (random() % 20'000) << (random() % 2 ? 0 : 40);
    auto it = reference.find(key);
    if (it == reference.end()) {
      const NodeId id = index.FindOrInsert(kNs, Hash(key), kNoNode, 0);
      index.BeginWrite(id, kDram, PageId{0, 0, key & 0xffffffffffff});
      index.Publish(id, kDram);
      reference[key] = id;
    } else if (random() % 2) {
      ASSERT_EQ(index.Find(kNs, Hash(key)), it->second);
      ASSERT_EQ(index.page(it->second, kDram).generation, key & 0xffffffffffff);
    } else {
      index.Remove(it->second, kDram);
      index.EraseIfUnused(it->second);
      reference.erase(it);
    }
  }
  EXPECT_EQ(index.num_nodes(), reference.size());
  EXPECT_EQ(index.NumNodesIn(kNs), reference.size());
  const absl::Status status = index.CheckInvariants();
  EXPECT_TRUE(status.ok()) << status;
}

TEST(PrefixIndex, KeepsEveryBitOfAPageThatTiersHandOut) {
  PrefixIndex index(1, kAllTiers);
  const NodeId id = index.FindOrInsert(kNs, Hash(1), kNoNode, 0);
  for (const PageId page : {PageId{UINT32_MAX, (1u << 24) - 1, (uint64_t{1} << 48) - 1},
                            PageId{1, 1u << 16, uint64_t{1} << 47}, PageId{7, 65535, 1}}) {
    index.BeginWrite(id, kNvme, page);
    EXPECT_EQ(index.page(id, kNvme), page);
    index.Remove(id, kNvme);
  }
}

TEST(PrefixIndex, UsesAtMost160BytesABlockWithTheEvictionOrderAndTheSlabMap) {
  constexpr size_t kLruBytes = 3 * (8 + 4);  // policy::LeafLru, store::SlabMap in three tiers
  PrefixIndex index(1, kAllTiers);
  uint64_t next = 1;
  for (size_t target : {100'000, 140'000, 200'000, 260'000}) {
    while (index.num_nodes() < target) {
      const NodeId id = index.FindOrInsert(kNs, Hash(next++ * 0x9e3779b97f4a7c15), kNoNode, 0);
      index.BeginWrite(id, kDram, PageId{});
    }
    EXPECT_LE(index.memory_bytes() / index.num_nodes() + kLruBytes, 160u) << target;
  }
}

}  // namespace
}  // namespace kvstore::index
