// A small page's identity, and edits of its bytes, from the input.
#pragma once

#include "kvstore/base/page_trailer.h"
#include "tests/fuzz/fuzz_input.h"

namespace kvstore::fuzz {

// Slots of at most 68 KiB; the page checksum is left zero.
inline PageIdentity TakeIdentity(Input& input) {
  PageIdentity identity;
  identity.shape.num_slices = 1 + input.Take<uint8_t>() % 16;
  identity.shape.slice_bytes = 1 + input.Take<uint16_t>() % 4096;
  const auto seed = input.Take<uint8_t>();
  identity.fingerprint.bytes.fill(seed);
  identity.hash.bytes.fill(static_cast<uint8_t>(seed + 1));
  identity.block_index = seed;
  identity.epoch = seed;
  return identity;
}

// [offset u32, xor u8]*
inline void Edit(Input& input, std::string& bytes) {
  while (!input.is_empty()) {
    const auto offset = input.Take<uint32_t>();
    bytes[offset % bytes.size()] ^= input.Take<char>();
  }
}

}  // namespace kvstore::fuzz
