// Plain views of memory that movers read and write. They own nothing; whoever passes one keeps the
// memory alive until `done`.
#pragma once

#include <cstddef>

namespace kvstore {

struct MutableRegion {
  std::byte* data = nullptr;
  size_t bytes = 0;
};

struct ConstRegion {
  const std::byte* data = nullptr;
  size_t bytes = 0;
  ConstRegion() = default;
  ConstRegion(const std::byte* d, size_t b) : data(d), bytes(b) {}
  ConstRegion(MutableRegion r)
      : data(r.data), bytes(r.bytes) {}  // NOLINT: const view of the same memory
};

}  // namespace kvstore
