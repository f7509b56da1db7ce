// Filling, sealing, checking and copying slots in host memory (layout:
// kvstore/base/page_trailer.h).
//
// Shapes are those that NamespaceSpec::Validate() accepts. Pure functions on raw memory;
// thread-safe on distinct slots. The fused copies read every byte once and write it once, with
// streaming stores, and take the checksum of the bytes that were *written to the destination*'s
// registers: what is checked is what was copied, also when another process changes the source
// meanwhile.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kvstore/base/page_trailer.h"

namespace kvstore::transfer {

// Seed of a block's checksums: XXH3-64 of fingerprint and hash. A slot that holds another block's
// bytes fails although they are intact.
uint64_t BlockSeed(const Fingerprint& fingerprint, const BlockHash& hash);
// block_seed + (slice_index + 1) * 0x9E3779B97F4A7C15: no two slices of a block share one.
uint64_t SliceSeed(uint64_t block_seed, uint32_t slice_index);
// XXH3-64 of one slice, with its SliceSeed().
uint64_t SliceChecksum(const std::byte* slice, size_t bytes, uint64_t block_seed,
                       uint32_t slice_index);
// XXH3-64 over an array of slice checksums, with seed block_seed. `slice_checksums` may be
// unaligned.
uint64_t PageChecksum(const std::byte* slice_checksums, uint32_t num_slices, uint64_t block_seed);

// Where the slice checksums of a slot start; `num_slices` uint64_t.
inline size_t SliceChecksumsOffset(const PageShape& shape) {
  return TrailerOffset(shape) + sizeof(PageTrailer);
}

// Save: copies `page` (shape.page_bytes()) into `slot` and seals it. Returns the page checksum,
// which the caller gives at Commit.
uint64_t CopyIntoSlot(std::byte* slot, const std::byte* page, const PageIdentity& identity);
// Save, for whoever wrote the page in place: writes trailer and slice checksums for the page bytes
// that are in `slot` now.
uint64_t SealSlot(std::byte* slot, const PageIdentity& identity);
// Save, for a page whose bytes a device wrote and checked: writes all that follows the page in its
// slot, slot_bytes() - page_bytes(), at `tail`. `slice_checksums` is [num_slices].
uint64_t SealTail(std::byte* tail, std::span<const uint64_t> slice_checksums,
                  const PageIdentity& identity);

// Load: copies the page out of `slot` into `page` and checks it. On an error `page` holds garbage.
// Errors: DataLoss, with the slice that differs.
absl::Status CopyFromSlot(std::byte* page, const std::byte* slot, const PageIdentity& expect);
// The slice checksums of one slot, copied out and checked against expect.page_checksum. Private
// memory: whoever changes a slice and its checksum in the slot afterwards is still caught. 8 KiB.
class SliceTable {
 public:
  // Errors: DataLoss, the slot's slice checksums are not those that expect.page_checksum was taken
  // over.
  absl::Status Load(const std::byte* slot, const PageIdentity& expect);
  uint64_t operator[](uint32_t slice_index) const { return checksums_[slice_index]; }
  const std::array<uint64_t, kNumSlicesMax>& checksums() const { return checksums_; }

 private:
  std::array<uint64_t, kNumSlicesMax> checksums_;
};
// As CopyFromSlot for one slice, so that a load can go layer by layer. `table` was loaded from this
// slot.
absl::Status CopySliceFromSlot(std::byte* slice, const std::byte* slot, const PageIdentity& expect,
                               const SliceTable& table, uint32_t slice_index);
// Checks that the slice checksums in `slot` are those that expect.page_checksum was taken over, and
// forgets them.
absl::Status CheckSliceTable(const std::byte* slot, const PageIdentity& expect);
// Checks one slice in place. `table` was loaded from this slot. Errors: DataLoss.
absl::Status VerifySlice(const std::byte* slot, const PageIdentity& expect, const SliceTable& table,
                         uint32_t slice_index);
// Checks all slices in place.
absl::Status VerifySlot(const std::byte* slot, const PageIdentity& expect);
// For a slot that a device copied here as it was: VerifySlot(), then writes the trailer from
// `expect`, as CopySlot() does.
absl::Status AcceptSlot(std::byte* slot, const PageIdentity& expect);
// Copies a whole slot and checks it on the way: what every tier change does. The trailer is written
// from `expect`, not copied: the one in `src` may have been scribbled on.
absl::Status CopySlot(std::byte* dst, const std::byte* src, const PageIdentity& expect);

// Durable tiers: writes the trailer (with generation and record checksum) before the slot goes to
// disk, and checks it afterwards. The slice checksums must be in place. record_checksum: XXH3-64,
// seed 0, over the trailer with record_checksum = 0 and the slice checksums.
void SealRecord(std::byte* slot, const PageIdentity& identity, uint64_t generation);
// Errors: DataLoss naming the first field that differs (magic, version, shape, fingerprint, epoch,
// hash, generation, checksum).
absl::Status CheckRecord(const std::byte* slot, const PageIdentity& expect, uint64_t generation);

}  // namespace kvstore::transfer
