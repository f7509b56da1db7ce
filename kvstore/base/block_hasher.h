// Block hashes from token ids: SHA-256(parent digest || token ids as little-endian uint32 || extra
// keys).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/base/block_hash.h"

namespace kvstore {

// Digest that block 0 is chained to: SHA-256("kvstore root v1" || fingerprint).
BlockHash RootHash(const Fingerprint& fingerprint);

// `extra`: what else the block depends on (multimodal content hashes with their offset,
// prompt-embedding digests); usually empty.
BlockHash HashBlock(const BlockHash& parent, std::span<const uint32_t> tokens,
                    std::string_view extra = {});

// Hashes of the whole blocks of `tokens`; a tail shorter than block_tokens has no hash.
// Requires: block_tokens > 0.
std::vector<BlockHash> HashBlocks(const BlockHash& root, std::span<const uint32_t> tokens,
                                  uint32_t block_tokens);

// A hash that an engine brings (vLLM, SGLang), 1 to 64 opaque bytes. 32 bytes are taken as they
// are, so that they meet the hashes above; other lengths are folded by SHA-256("kvstore engine hash
// v1" || length || bytes). Errors: InvalidArgument for 0 or more than 64 bytes.
absl::StatusOr<BlockHash> EngineHash(std::span<const uint8_t> bytes);
inline constexpr size_t kEngineHashBytesMax = 64;

}  // namespace kvstore
