// A page as a tier is given it: sealed, aligned, with bytes and identity that no other number has.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kvstore/base/page_trailer.h"
#include "kvstore/base/region.h"
#include "transfer/memory/page_codec.h"

namespace kvstore::tiers {

// Memory is aligned for O_DIRECT.
class SealedPage {
 public:
  SealedPage(uint32_t number, PageShape shape) : SealedPage(shape) {
    identity_.shape = shape;
    identity_.fingerprint.bytes[0] = 7;
    identity_.epoch = 3;
    std::memcpy(identity_.hash.bytes.data(), &number, sizeof number);
    identity_.block_index = number;
    std::vector<std::byte> page(shape.page_bytes());
    std::mt19937_64 random(number);
    for (size_t i = 0; i + 8 <= page.size(); i += 8) {
      const uint64_t word = random();
      std::memcpy(page.data() + i, &word, sizeof word);
    }
    identity_.page_checksum = transfer::CopyIntoSlot(data_.get(), page.data(), identity_);
  }
  // Empty memory to read into.
  explicit SealedPage(PageShape shape)
      : bytes_(shape.slot_bytes()),
        data_(static_cast<std::byte*>(std::aligned_alloc(4096, shape.slot_bytes())), std::free) {
    std::memset(data_.get(), 0xEE, bytes_);
  }
  const PageIdentity& identity() const { return identity_; }
  MutableRegion region() const { return {data_.get(), bytes_}; }
  std::byte* data() const { return data_.get(); }
  bool HasPageOf(const SealedPage& other) const {
    return std::memcmp(data(), other.data(), other.identity_.shape.page_bytes()) == 0;
  }

 private:
  PageIdentity identity_;
  size_t bytes_;
  std::unique_ptr<std::byte, void (*)(void*)> data_;
};

}  // namespace kvstore::tiers
