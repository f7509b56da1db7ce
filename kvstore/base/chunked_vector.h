// A vector that grows by whole chunks: elements never move, growing never copies, and at most one
// chunk is unused.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace kvstore {

// Externally synchronised. T must be default constructible.
template <typename T, size_t kChunkElements = 1024>
class ChunkedVector {
 public:
  T& operator[](size_t i) { return chunks_[i / kChunkElements][i % kChunkElements]; }
  const T& operator[](size_t i) const { return chunks_[i / kChunkElements][i % kChunkElements]; }
  // Makes [0, size) addressable; new elements are value-initialised.
  void EnsureSize(size_t size) {
    while (chunks_.size() * kChunkElements < size)
      chunks_.push_back(std::make_unique<T[]>(kChunkElements));
  }
  // Elements that are addressable, a whole chunk at a time.
  size_t size() const { return chunks_.size() * kChunkElements; }
  size_t memory_bytes() const {
    return chunks_.size() * (kChunkElements * sizeof(T) + sizeof(void*));
  }

 private:
  std::vector<std::unique_ptr<T[]>> chunks_;
};

}  // namespace kvstore
