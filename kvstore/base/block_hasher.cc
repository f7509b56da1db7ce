#include "kvstore/base/block_hasher.h"

#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"

// The one-shot EVP interface costs about 300 ns a call for its provider look-up; a 16-token block
// is hashed in 80. The low-level functions are deprecated in OpenSSL 3, not removed, and use the
// same SHA extensions.
#define OPENSSL_SUPPRESS_DEPRECATED
#include <openssl/sha.h>

namespace kvstore {

static_assert(std::endian::native == std::endian::little,
              "token ids are hashed as little-endian uint32 straight from memory");

BlockHash RootHash(const Fingerprint& fingerprint) {
  static constexpr char kSeed[] = "kvstore root v1";
  BlockHash out;
  SHA256_CTX ctx;
  SHA256_Init(&ctx);
  SHA256_Update(&ctx, kSeed, sizeof kSeed - 1);
  SHA256_Update(&ctx, fingerprint.bytes.data(), Fingerprint::kBytes);
  SHA256_Final(out.bytes.data(), &ctx);
  return out;
}

BlockHash HashBlock(const BlockHash& parent, std::span<const uint32_t> tokens,
                    std::string_view extra) {
  BlockHash out;
  SHA256_CTX ctx;
  SHA256_Init(&ctx);
  SHA256_Update(&ctx, parent.bytes.data(), BlockHash::kBytes);
  SHA256_Update(&ctx, tokens.data(), tokens.size_bytes());
  SHA256_Update(&ctx, extra.data(), extra.size());
  SHA256_Final(out.bytes.data(), &ctx);
  return out;
}

std::vector<BlockHash> HashBlocks(const BlockHash& root, std::span<const uint32_t> tokens,
                                  uint32_t block_tokens) {
  std::vector<BlockHash> hashes;
  hashes.reserve(tokens.size() / block_tokens);
  const BlockHash* parent = &root;
  for (size_t at = 0; at + block_tokens <= tokens.size(); at += block_tokens) {
    hashes.push_back(HashBlock(*parent, tokens.subspan(at, block_tokens)));
    parent = &hashes.back();
  }
  return hashes;
}

absl::StatusOr<BlockHash> EngineHash(std::span<const uint8_t> bytes) {
  if (bytes.empty() || bytes.size() > kEngineHashBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("block hash of ", bytes.size(), " bytes; valid: 1 to 64"));
  }
  BlockHash out;
  if (bytes.size() == BlockHash::kBytes) {
    std::memcpy(out.bytes.data(), bytes.data(), BlockHash::kBytes);
    return out;
  }
  static constexpr char kSeed[] = "kvstore engine hash v1";
  const uint8_t length = static_cast<uint8_t>(bytes.size());
  SHA256_CTX ctx;
  SHA256_Init(&ctx);
  SHA256_Update(&ctx, kSeed, sizeof kSeed - 1);
  SHA256_Update(&ctx, &length, 1);
  SHA256_Update(&ctx, bytes.data(), bytes.size());
  SHA256_Final(out.bytes.data(), &ctx);
  return out;
}

}  // namespace kvstore
