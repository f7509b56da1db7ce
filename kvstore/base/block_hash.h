// Names of things that outlive a process: 256-bit block hashes and 128-bit namespace fingerprints.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>

namespace kvstore {

// Names one block within a namespace. Chained over the prefix: SHA-256(parent || tokens || extra
// keys), see block_hasher.h. Uniformly distributed, so its first bytes serve as a hash table key.
struct BlockHash {
  static constexpr size_t kBytes = 32;
  std::array<uint8_t, kBytes> bytes{};

  uint64_t Prefix64() const {
    uint64_t v;
    std::memcpy(&v, bytes.data(), sizeof v);
    return v;
  }
  std::string Hex() const;
  friend bool operator==(const BlockHash&, const BlockHash&) = default;
  friend auto operator<=>(const BlockHash&, const BlockHash&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const BlockHash& b) {
    return H::combine(std::move(h), b.Prefix64());
  }
};
static_assert(sizeof(BlockHash) == 32, "on disk and on the wire");

// Identity of a namespace: the first 128 bits of SHA-256 over its canonical spec
// (namespace_spec.h).
struct Fingerprint {
  static constexpr size_t kBytes = 16;
  std::array<uint8_t, kBytes> bytes{};

  std::string Hex() const;
  friend bool operator==(const Fingerprint&, const Fingerprint&) = default;
  friend auto operator<=>(const Fingerprint&, const Fingerprint&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const Fingerprint& f) {
    return H::combine(std::move(h), f.bytes);
  }
};
static_assert(sizeof(Fingerprint) == 16, "on disk and on the wire");

// Lower-case hex of any bytes.
std::string ToHex(std::span<const uint8_t> bytes);

}  // namespace kvstore
