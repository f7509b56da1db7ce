#include "tiers/nvme/superblock.h"

#include <xxhash.h>

#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace kvstore::tiers {
namespace {

static_assert(std::endian::native == std::endian::little, "on disk: little-endian");

// On disk.
struct RawSuperblock {
  uint64_t magic;
  uint32_t version;
  uint32_t reserved;  // zero
  std::array<uint8_t, 16> store_id;
  uint32_t directory_index;
  uint32_t directory_count;
  uint64_t extent_bytes;
  uint64_t opens;
  uint64_t checksum;  // XXH3-64, seed 0, of the bytes before it
};
static_assert(sizeof(RawSuperblock) == 64 && offsetof(RawSuperblock, checksum) == 56, "on disk");

}  // namespace

std::array<std::byte, kSuperblockBytes> EncodeSuperblock(const Superblock& superblock) {
  RawSuperblock raw{};
  raw.magic = kSuperblockMagic;
  raw.version = superblock.version;
  raw.store_id = superblock.store_id;
  raw.directory_index = superblock.directory_index;
  raw.directory_count = superblock.directory_count;
  raw.extent_bytes = superblock.extent_bytes;
  raw.opens = superblock.opens;
  raw.checksum = XXH3_64bits(&raw, offsetof(RawSuperblock, checksum));
  std::array<std::byte, kSuperblockBytes> bytes{};
  std::memcpy(bytes.data(), &raw, sizeof raw);
  return bytes;
}

absl::StatusOr<Superblock> DecodeSuperblock(std::span<const std::byte> bytes) {
  RawSuperblock raw;
  if (bytes.size() < sizeof raw) return absl::DataLossError("superblock: cut short");
  std::memcpy(&raw, bytes.data(), sizeof raw);
  if (raw.magic != kSuperblockMagic) return absl::DataLossError("superblock: not one of ours");
  // Before the checksum: another version may place it elsewhere.
  if (raw.version < kNvmeFormatPlain || raw.version > kNvmeFormatEncrypted) {
    return absl::FailedPreconditionError(
        absl::StrCat("format version ", raw.version, ", this program knows versions ",
                     kNvmeFormatPlain, " to ", kNvmeFormatEncrypted,
                     raw.version > kNvmeFormatEncrypted ? ": written by a newer program" : ""));
  }
  if (raw.checksum != XXH3_64bits(&raw, offsetof(RawSuperblock, checksum))) {
    return absl::DataLossError("superblock: checksum differs");
  }
  return Superblock{.version = raw.version,
                    .store_id = raw.store_id,
                    .directory_index = raw.directory_index,
                    .directory_count = raw.directory_count,
                    .extent_bytes = raw.extent_bytes,
                    .opens = raw.opens};
}

}  // namespace kvstore::tiers
