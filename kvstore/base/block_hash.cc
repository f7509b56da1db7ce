#include "kvstore/base/block_hash.h"

namespace kvstore {

std::string ToHex(std::span<const uint8_t> bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  out.reserve(bytes.size() * 2);
  for (uint8_t b : bytes) {
    out += kDigits[b >> 4];
    out += kDigits[b & 15];
  }
  return out;
}

std::string BlockHash::Hex() const { return ToHex(bytes); }
std::string Fingerprint::Hex() const { return ToHex(bytes); }

}  // namespace kvstore
