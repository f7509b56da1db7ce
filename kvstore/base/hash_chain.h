// The block hashes of a conversation that grows: a prompt that begins like the one before costs a
// comparison for what they share and SHA-256 for what is new.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvstore/base/block_hash.h"

namespace kvstore {

// Externally synchronised. Keeps the tokens (4 bytes each) and hashes (32 a block) of one prompt.
class HashChain {
 public:
  // `root`: RootHash() of the namespace. Requires: block_tokens > 0.
  HashChain(const BlockHash& root, uint32_t block_tokens)
      : root_(root), block_tokens_(block_tokens) {}

  // The hashes of the whole blocks of `tokens`, as HashBlocks() gives them. Valid until the next
  // call.
  std::span<const BlockHash> Hash(std::span<const uint32_t> tokens);

 private:
  const BlockHash root_;
  const uint32_t block_tokens_;
  std::vector<uint32_t> tokens_;  // of whole blocks
  std::vector<BlockHash> hashes_;
};

}  // namespace kvstore
