#include "transfer/memory/page_codec.h"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/page_checksum.h"

namespace kvstore::transfer {
namespace {

using Checksums = std::array<uint64_t, kNumSlicesMax>;  // 8 KiB, on the stack

// Odd, so that slices of one block never share a seed; slice -1, as it were, is the page checksum.
constexpr uint64_t kSliceSeedStep = 0x9E3779B97F4A7C15U;

uint64_t BlockSeedOf(const PageIdentity& identity) {
  return BlockSeed(identity.fingerprint, identity.hash);
}

// For shapes that NamespaceSpec::Validate() refuses: no page of such a namespace can exist.
void RequireValidShape(const PageShape& shape) {
  if (shape.num_slices == 0 || shape.num_slices > kNumSlicesMax) {
    std::fprintf(stderr, "page codec: %u slices\n", shape.num_slices);
    std::abort();
  }
}

std::string Name(const PageIdentity& identity) {
  return absl::StrCat("block ", identity.hash.Hex().substr(0, 16));
}

absl::Status SliceDiffers(const PageIdentity& expect, uint32_t slice_index) {
  return absl::DataLossError(
      absl::StrCat(Name(expect), ": slice ", slice_index, " does not match its checksum"));
}

// Everything behind the page, from `tail` on: padding, trailer, `table`, padding. Nothing of what
// the slot held before remains.
void WriteTail(std::byte* tail, std::span<const uint64_t> table, const PageIdentity& identity,
               uint64_t generation) {
  const PageShape& shape = identity.shape;
  const uint64_t page_bytes = shape.page_bytes();
  const uint64_t trailer_at = TrailerOffset(shape) - page_bytes;
  const uint64_t table_at = SliceChecksumsOffset(shape) - page_bytes;
  const uint64_t table_end = table_at + uint64_t{8} * shape.num_slices;
  std::memset(tail, 0, trailer_at);
  PageTrailer trailer = {};
  trailer.magic = kPageTrailerMagic;
  trailer.version = kPageTrailerVersion;
  trailer.num_slices = shape.num_slices;
  trailer.slice_bytes = shape.slice_bytes;
  trailer.block_index = identity.block_index;
  trailer.generation = generation;
  trailer.epoch = identity.epoch;
  trailer.fingerprint = identity.fingerprint;
  trailer.hash = identity.hash;
  trailer.parent = identity.parent;
  trailer.page_checksum = identity.page_checksum;
  std::memcpy(tail + trailer_at, &trailer, sizeof trailer);
  std::memcpy(tail + table_at, table.data(), table_end - table_at);
  std::memset(tail + table_end, 0, shape.slot_bytes() - page_bytes - table_end);
}

// Copies all slices, up to the first that differs. Fenced whatever the outcome: a late store must
// not hit the next use of `dst`.
absl::Status CopySlices(std::byte* dst, const std::byte* src, const PageIdentity& expect,
                        const SliceTable& table) {
  const uint64_t block_seed = BlockSeedOf(expect);
  const size_t slice_bytes = expect.shape.slice_bytes;
  uint32_t i = 0;
  for (; i < expect.shape.num_slices; ++i) {
    const uint64_t found = kernels::CopyChecksumUnfenced(
        dst + i * slice_bytes, src + i * slice_bytes, slice_bytes, SliceSeed(block_seed, i));
    if (found != table[i]) break;
  }
  kernels::FenceCopies();
  return i == expect.shape.num_slices ? absl::OkStatus() : SliceDiffers(expect, i);
}

absl::Status VerifySlices(const std::byte* slot, const PageIdentity& expect,
                          const SliceTable& table) {
  for (uint32_t i = 0; i < expect.shape.num_slices; ++i) {
    if (absl::Status status = VerifySlice(slot, expect, table, i); !status.ok()) return status;
  }
  return absl::OkStatus();
}

// Over the trailer, with record_checksum zero, and the slice checksums behind it.
uint64_t RecordChecksum(PageTrailer trailer, const std::byte* slice_checksums) {
  trailer.record_checksum = 0;
  std::array<std::byte, sizeof(PageTrailer) + sizeof(Checksums)> record;
  const size_t table_bytes = size_t{8} * trailer.num_slices;
  std::memcpy(record.data(), &trailer, sizeof trailer);
  std::memcpy(record.data() + sizeof trailer, slice_checksums, table_bytes);
  return kernels::Checksum(record.data(), sizeof trailer + table_bytes, 0);
}

}  // namespace

uint64_t BlockSeed(const Fingerprint& fingerprint, const BlockHash& hash) {
  std::array<uint8_t, Fingerprint::kBytes + BlockHash::kBytes> key;
  std::memcpy(key.data(), fingerprint.bytes.data(), Fingerprint::kBytes);
  std::memcpy(key.data() + Fingerprint::kBytes, hash.bytes.data(), BlockHash::kBytes);
  return kernels::Checksum(key.data(), key.size(), 0);
}

uint64_t SliceSeed(uint64_t block_seed, uint32_t slice_index) {
  return block_seed + (uint64_t{slice_index} + 1) * kSliceSeedStep;
}

uint64_t SliceChecksum(const std::byte* slice, size_t bytes, uint64_t block_seed,
                       uint32_t slice_index) {
  return kernels::Checksum(slice, bytes, SliceSeed(block_seed, slice_index));
}

uint64_t PageChecksum(const std::byte* slice_checksums, uint32_t num_slices, uint64_t block_seed) {
  return kernels::Checksum(slice_checksums, size_t{8} * num_slices, block_seed);
}

uint64_t CopyIntoSlot(std::byte* slot, const std::byte* page, const PageIdentity& identity) {
  RequireValidShape(identity.shape);
  const uint64_t block_seed = BlockSeedOf(identity);
  const size_t slice_bytes = identity.shape.slice_bytes;
  Checksums table;
  for (uint32_t i = 0; i < identity.shape.num_slices; ++i) {
    table[i] = kernels::CopyChecksumUnfenced(slot + i * slice_bytes, page + i * slice_bytes,
                                             slice_bytes, SliceSeed(block_seed, i));
  }
  kernels::FenceCopies();
  return SealTail(slot + identity.shape.page_bytes(), table, identity);
}

uint64_t SealSlot(std::byte* slot, const PageIdentity& identity) {
  RequireValidShape(identity.shape);
  const uint64_t block_seed = BlockSeedOf(identity);
  const size_t slice_bytes = identity.shape.slice_bytes;
  Checksums table;
  for (uint32_t i = 0; i < identity.shape.num_slices; ++i) {
    table[i] = SliceChecksum(slot + i * slice_bytes, slice_bytes, block_seed, i);
  }
  return SealTail(slot + identity.shape.page_bytes(), table, identity);
}

uint64_t SealTail(std::byte* tail, std::span<const uint64_t> slice_checksums,
                  const PageIdentity& identity) {
  RequireValidShape(identity.shape);
  PageIdentity sealed = identity;
  sealed.page_checksum = PageChecksum(reinterpret_cast<const std::byte*>(slice_checksums.data()),
                                      identity.shape.num_slices, BlockSeedOf(identity));
  WriteTail(tail, slice_checksums, sealed, 0);
  return sealed.page_checksum;
}

absl::Status CopyFromSlot(std::byte* page, const std::byte* slot, const PageIdentity& expect) {
  SliceTable table;
  if (absl::Status status = table.Load(slot, expect); !status.ok()) return status;
  return CopySlices(page, slot, expect, table);
}

absl::Status SliceTable::Load(const std::byte* slot, const PageIdentity& expect) {
  RequireValidShape(expect.shape);
  const uint32_t num_slices = expect.shape.num_slices;
  std::memcpy(checksums_.data(), slot + SliceChecksumsOffset(expect.shape), size_t{8} * num_slices);
  const uint64_t found = PageChecksum(reinterpret_cast<const std::byte*>(checksums_.data()),
                                      num_slices, BlockSeedOf(expect));
  if (found == expect.page_checksum) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat(Name(expect), ": slice checksums do not match the page checksum"));
}

absl::Status CopySliceFromSlot(std::byte* slice, const std::byte* slot, const PageIdentity& expect,
                               const SliceTable& table, uint32_t slice_index) {
  if (slice_index >= expect.shape.num_slices) {
    return absl::InvalidArgumentError(absl::StrCat("slice ", slice_index, " of a page with ",
                                                   expect.shape.num_slices, " slices"));
  }
  const size_t slice_bytes = expect.shape.slice_bytes;
  const uint64_t found = kernels::CopyChecksum(slice, slot + slice_index * slice_bytes, slice_bytes,
                                               SliceSeed(BlockSeedOf(expect), slice_index));
  return found == table[slice_index] ? absl::OkStatus() : SliceDiffers(expect, slice_index);
}

absl::Status VerifySlice(const std::byte* slot, const PageIdentity& expect, const SliceTable& table,
                         uint32_t slice_index) {
  const size_t slice_bytes = expect.shape.slice_bytes;
  const uint64_t found = SliceChecksum(slot + slice_index * slice_bytes, slice_bytes,
                                       BlockSeedOf(expect), slice_index);
  return found == table[slice_index] ? absl::OkStatus() : SliceDiffers(expect, slice_index);
}

absl::Status CheckSliceTable(const std::byte* slot, const PageIdentity& expect) {
  SliceTable table;
  return table.Load(slot, expect);
}

absl::Status VerifySlot(const std::byte* slot, const PageIdentity& expect) {
  SliceTable table;
  if (absl::Status status = table.Load(slot, expect); !status.ok()) return status;
  return VerifySlices(slot, expect, table);
}

absl::Status AcceptSlot(std::byte* slot, const PageIdentity& expect) {
  SliceTable table;
  if (absl::Status status = table.Load(slot, expect); !status.ok()) return status;
  if (absl::Status status = VerifySlices(slot, expect, table); !status.ok()) return status;
  WriteTail(slot + expect.shape.page_bytes(), table.checksums(), expect, 0);
  return absl::OkStatus();
}

absl::Status CopySlot(std::byte* dst, const std::byte* src, const PageIdentity& expect) {
  SliceTable table;
  if (absl::Status status = table.Load(src, expect); !status.ok()) return status;
  if (absl::Status status = CopySlices(dst, src, expect, table); !status.ok()) return status;
  WriteTail(dst + expect.shape.page_bytes(), table.checksums(), expect, 0);
  return absl::OkStatus();
}

void SealRecord(std::byte* slot, const PageIdentity& identity, uint64_t generation) {
  RequireValidShape(identity.shape);
  Checksums table;
  std::memcpy(table.data(), slot + SliceChecksumsOffset(identity.shape),
              size_t{8} * identity.shape.num_slices);
  WriteTail(slot + identity.shape.page_bytes(), table, identity, generation);
  PageTrailer trailer;
  std::byte* at = slot + TrailerOffset(identity.shape);
  std::memcpy(&trailer, at, sizeof trailer);
  trailer.record_checksum =
      RecordChecksum(trailer, reinterpret_cast<const std::byte*>(table.data()));
  std::memcpy(at, &trailer, sizeof trailer);
}

absl::Status CheckRecord(const std::byte* slot, const PageIdentity& expect, uint64_t generation) {
  RequireValidShape(expect.shape);
  PageTrailer trailer;
  std::memcpy(&trailer, slot + TrailerOffset(expect.shape), sizeof trailer);
  const auto differs = [&expect](const char* field) {
    return absl::DataLossError(absl::StrCat(Name(expect), ": record has another ", field));
  };
  if (trailer.magic != kPageTrailerMagic) return differs("magic");
  if (trailer.version != kPageTrailerVersion) return differs("version");
  if (trailer.num_slices != expect.shape.num_slices) return differs("number of slices");
  if (trailer.slice_bytes != expect.shape.slice_bytes) return differs("slice size");
  if (trailer.fingerprint != expect.fingerprint) return differs("fingerprint");
  if (trailer.epoch != expect.epoch) return differs("epoch");
  if (trailer.hash != expect.hash) return differs("hash");
  if (trailer.parent != expect.parent) return differs("parent");
  if (trailer.block_index != expect.block_index) return differs("block index");
  if (trailer.generation != generation) return differs("generation");
  if (trailer.page_checksum != expect.page_checksum) return differs("page checksum");
  if (trailer.record_checksum !=
      RecordChecksum(trailer, slot + SliceChecksumsOffset(expect.shape))) {
    return differs("record checksum");
  }
  return absl::OkStatus();
}

}  // namespace kvstore::transfer
