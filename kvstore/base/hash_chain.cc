#include "kvstore/base/hash_chain.h"

#include <algorithm>

#include "kvstore/base/block_hasher.h"

namespace kvstore {

std::span<const BlockHash> HashChain::Hash(std::span<const uint32_t> tokens) {
  const std::span<const uint32_t> whole =
      tokens.first(tokens.size() / block_tokens_ * block_tokens_);
  const auto [differs, end] =
      std::mismatch(whole.begin(), whole.end(), tokens_.begin(), tokens_.end());
  const size_t shared = static_cast<size_t>(differs - whole.begin()) / block_tokens_;
  hashes_.resize(shared);
  tokens_.assign(whole.begin(), whole.end());
  const BlockHash& parent = shared == 0 ? root_ : hashes_.back();
  const std::vector<BlockHash> fresh =
      HashBlocks(parent, whole.subspan(shared * block_tokens_), block_tokens_);
  hashes_.insert(hashes_.end(), fresh.begin(), fresh.end());
  return hashes_;
}

}  // namespace kvstore
