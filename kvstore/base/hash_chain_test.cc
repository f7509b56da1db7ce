#include "kvstore/base/hash_chain.h"

#include <gtest/gtest.h>

#include <numeric>

#include "kvstore/base/block_hasher.h"

namespace kvstore {
namespace {

constexpr uint32_t kBlockTokens = 4;

std::vector<uint32_t> Tokens(size_t n) {
  std::vector<uint32_t> tokens(n);
  std::iota(tokens.begin(), tokens.end(), 7);
  return tokens;
}

void ExpectAsFresh(HashChain& chain, const BlockHash& root, std::span<const uint32_t> tokens) {
  const std::span<const BlockHash> hashes = chain.Hash(tokens);
  EXPECT_EQ(std::vector<BlockHash>(hashes.begin(), hashes.end()),
            HashBlocks(root, tokens, kBlockTokens));
}

TEST(HashChain, AnyNextPromptHasTheHashesOfAFreshOne) {
  const BlockHash root = RootHash({.bytes = {1}});
  HashChain chain(root, kBlockTokens);
  const std::vector<uint32_t> all = Tokens(41);
  for (const size_t n : {0, 3, 4, 5, 17, 40, 41, 12, 0, 39})
    ExpectAsFresh(chain, root, std::span(all).first(n));
}

TEST(HashChain, AChangeAnywhereIsSeen) {
  const BlockHash root = RootHash({.bytes = {1}});
  const std::vector<uint32_t> all = Tokens(24);
  for (size_t at = 0; at < all.size(); ++at) {
    HashChain chain(root, kBlockTokens);
    chain.Hash(all);
    std::vector<uint32_t> changed = all;
    changed[at] += 1;
    ExpectAsFresh(chain, root, changed);
    ExpectAsFresh(chain, root, all);
  }
}

}  // namespace
}  // namespace kvstore
