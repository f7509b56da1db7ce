// Filling, sealing, checking and copying slots in host memory (layout: kvstore/base/page_trailer.h).
//
// Pure functions on raw memory; thread-safe on distinct slots. The fused copies read every byte once and write it once, with streaming
// stores, and take the checksum of the bytes that were *written to the destination*'s registers: what is checked is what was copied, also
// when another process changes the source meanwhile.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kvstore/base/page_trailer.h"

namespace kvstore::transfer {

// Seed of a block's checksums: a slot that holds another block's bytes fails although they are intact.
uint64_t BlockSeed(const Fingerprint& fingerprint, const BlockHash& hash);
// XXH3-64 of one slice, seeded with the block seed and the slice's index.
uint64_t SliceChecksum(const std::byte* slice, size_t bytes, uint64_t block_seed, uint32_t slice_index);
// Checksum over an array of slice checksums. `slice_checksums` may be unaligned.
uint64_t PageChecksum(const std::byte* slice_checksums, uint32_t num_slices, uint64_t block_seed);

// Where the slice checksums of a slot start; `num_slices` uint64_t.
inline size_t SliceChecksumsOffset(const PageShape& shape) { return TrailerOffset(shape) + sizeof(PageTrailer); }

// Save: copies `page` (shape.page_bytes()) into `slot` and seals it. Returns the page checksum, which the caller gives at Commit.
uint64_t CopyIntoSlot(std::byte* slot, const std::byte* page, const PageIdentity& identity);
// Save, for whoever wrote the page in place: writes trailer and slice checksums for the page bytes that are in `slot` now.
uint64_t SealSlot(std::byte* slot, const PageIdentity& identity);

// Load: copies the page out of `slot` into `page` and checks it. On an error `page` holds garbage.
// Errors: DataLoss, with the slice that differs.
absl::Status CopyFromSlot(std::byte* page, const std::byte* slot, const PageIdentity& expect);
// As CopyFromSlot for one slice, so that a load can go layer by layer. The caller has called CheckSliceTable() before.
absl::Status CopySliceFromSlot(std::byte* slice, const std::byte* slot, const PageIdentity& expect, uint32_t slice_index);
// Checks that the slice checksums in `slot` are those that expect.page_checksum was taken over.
absl::Status CheckSliceTable(const std::byte* slot, const PageIdentity& expect);
// Checks all slices in place.
absl::Status VerifySlot(const std::byte* slot, const PageIdentity& expect);
// Copies a whole slot, trailer included, and checks it on the way: what every tier change does.
absl::Status CopySlot(std::byte* dst, const std::byte* src, const PageIdentity& expect);

// Durable tiers: completes the trailer (generation, record checksum) before the slot goes to disk, and checks it afterwards.
// The slice checksums must be in place.
void SealRecord(std::byte* slot, const PageIdentity& identity, uint64_t generation);
// Errors: DataLoss naming the first field that differs (magic, version, shape, fingerprint, epoch, hash, generation, checksum).
absl::Status CheckRecord(const std::byte* slot, const PageIdentity& expect, uint64_t generation);

}  // namespace kvstore::transfer
