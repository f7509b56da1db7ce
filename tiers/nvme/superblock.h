// The first thing read from a directory: what it is, in which format, and how often it was opened.
// On disk; see FORMAT.md before changing anything.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/statusor.h"

namespace kvstore::tiers {

inline constexpr uint64_t kSuperblockBytes = 4096;
inline constexpr uint64_t kLockBytesMax = 32;  // the lock file holds its owner's pid in decimal
// What a directory needs besides extents and index: superblock, its replacement, probe file, lock.
inline constexpr uint64_t kDirectoryBytesMax = 4 * kSuperblockBytes;
inline constexpr uint64_t kSuperblockMagic = 0x3142536d764e4b56;  // "VKNvmSB1" little-endian
// A directory is of version 1 until encryption is first asked for: what version 1 can say, older
// programs go on reading.
inline constexpr uint32_t kNvmeFormatPlain = 1;
inline constexpr uint32_t kNvmeFormatEncrypted = 2;  // has `secrets`; records of value version 2

struct Superblock {
  uint32_t version = kNvmeFormatPlain;
  std::array<uint8_t, 16> store_id{};  // random; the same in all directories of one store
  uint32_t directory_index = 0;
  uint32_t directory_count = 0;
  uint64_t extent_bytes = 0;
  uint64_t opens = 0;  // grows at every start; the base of the generations of that run
  friend bool operator==(const Superblock&, const Superblock&) = default;
};

// Generations on disk of the run that is start number `opens` lie above: 2^40 uses of slots in each
// of 2^23 starts, so that they never come back.
constexpr uint64_t GenerationBase(uint64_t opens) { return opens << 40; }

std::array<std::byte, kSuperblockBytes> EncodeSuperblock(const Superblock& superblock);
// Errors: FailedPrecondition, another version (newer, or unknown); DataLoss, not a superblock or
// damaged.
absl::StatusOr<Superblock> DecodeSuperblock(std::span<const std::byte> bytes);

}  // namespace kvstore::tiers
