// Bytes and hashes that no cache or compression can guess, made fast and again from their seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "kvstore/base/block_hash.h"

namespace kvstore::bench {

// SplitMix64: every seed gives another sequence.
class RandomWords {
 public:
  explicit RandomWords(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t Below(uint64_t bound) { return Next() % bound; }

 private:
  uint64_t state_;
};

// Requires a multiple of 8 bytes.
inline void FillRandom(std::span<std::byte> bytes, uint64_t seed) {
  RandomWords words(seed);
  for (size_t at = 0; at + 8 <= bytes.size(); at += 8) {
    const uint64_t word = words.Next();
    std::memcpy(bytes.data() + at, &word, 8);
  }
}

// Hashes as an engine would bring them.
inline std::vector<BlockHash> RandomHashes(size_t count, uint64_t seed) {
  std::vector<BlockHash> hashes(count);
  FillRandom(std::as_writable_bytes(std::span(hashes)), seed);
  return hashes;
}

// [0, count) in an order that hardware prefetchers do not foresee.
inline std::vector<uint32_t> RandomOrder(size_t count, uint64_t seed) {
  std::vector<uint32_t> order(count);
  for (size_t i = 0; i < count; ++i) order[i] = static_cast<uint32_t>(i);
  RandomWords words(seed);
  for (size_t i = count; i > 1; --i) std::swap(order[i - 1], order[words.Below(i)]);
  return order;
}

}  // namespace kvstore::bench
