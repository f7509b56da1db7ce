// Which index of the kernel's table covers a buffer. Externally synchronised.
#pragma once

#include <cstddef>
#include <iterator>
#include <map>
#include <optional>

#include "kvstore/base/region.h"

namespace kvstore::transfer {

class RegisteredMemory {
 public:
  void Add(MutableRegion piece, int index) { pieces_[piece.data] = {piece.bytes, index}; }
  // Index of the piece that starts at `data`, which is forgotten.
  std::optional<int> Remove(const std::byte* data) {
    auto it = pieces_.find(data);
    if (it == pieces_.end()) return std::nullopt;
    const int index = it->second.index;
    pieces_.erase(it);
    return index;
  }
  // -1: not wholly inside one registered piece.
  int Find(MutableRegion buffer) const {
    auto it = pieces_.upper_bound(buffer.data);
    if (it == pieces_.begin()) return -1;
    --it;
    const auto into = static_cast<size_t>(buffer.data - it->first);
    return into <= it->second.bytes && buffer.bytes <= it->second.bytes - into ? it->second.index
                                                                               : -1;
  }

 private:
  struct Piece {
    size_t bytes = 0;
    int index = -1;
  };
  std::map<const std::byte*, Piece> pieces_;  // by start; they do not overlap
};

}  // namespace kvstore::transfer
