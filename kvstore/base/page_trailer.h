// The trailer that follows every page in its slot, the same bytes in every tier. On disk: see
// tiers/nvme/FORMAT.md.
//
//   slot = | page: num_slices x slice_bytes | zero padding to 8 | PageTrailer | slice checksums u64
//   x num_slices | padding |
//
// Two levels of checksums: slice_checksums[i] covers slice i, and the *page checksum* covers the
// array of slice checksums. The daemon keeps the page checksum in memory of its own, so whoever
// edits a slot in shared memory or on disk can only cause a miss.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvstore/base/block_hash.h"
#include "kvstore/base/namespace_spec.h"

namespace kvstore {

inline constexpr uint64_t kPageTrailerMagic =
    0x31726c5474654b56;  // "VKetTlr1" little-endian; on disk, do not change
inline constexpr uint32_t kPageTrailerVersion = 1;

// Fixed part. All integers little-endian. The record checksum covers this struct (with
// record_checksum = 0) and the slice checksums.
struct PageTrailer {
  uint64_t magic;
  uint32_t version;
  uint32_t num_slices;
  uint32_t slice_bytes;
  uint32_t block_index;  // position of the block in its prefix, 0 first
  uint64_t generation;  // of the slot on the durable tier that holds this record; 0 in memory tiers
  uint64_t epoch;       // of the namespace
  Fingerprint fingerprint;
  BlockHash hash;
  BlockHash parent;  // all zero for block 0
  uint64_t page_checksum;
  uint64_t record_checksum;
};
static_assert(sizeof(PageTrailer) == 8 + 4 * 4 + 8 + 8 + 16 + 32 + 32 + 8 + 8, "on disk");
static_assert(offsetof(PageTrailer, hash) == 56 && offsetof(PageTrailer, record_checksum) == 128,
              "on disk");

// Offset of the trailer from the start of the slot.
inline uint64_t TrailerOffset(const PageShape& shape) {
  return (shape.page_bytes() + 7) & ~uint64_t{7};
}

// Everything that says which bytes a page must hold. What a tier is given to write, and what it
// must find when it reads.
struct PageIdentity {
  PageShape shape;
  Fingerprint fingerprint;
  uint64_t epoch = 0;
  BlockHash hash;
  BlockHash parent;
  uint32_t block_index = 0;
  uint64_t page_checksum = 0;
};

}  // namespace kvstore
