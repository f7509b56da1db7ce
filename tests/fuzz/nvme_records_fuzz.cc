// Records of the NVMe index and the superblock of a directory.
//
//   input: which u8; records: key length u8, key, value; superblock: how u8 (1: with a right
//   checksum), bytes
//
// Promises: what is decoded encodes to the same bytes, and is of a shape that a namespace can have.
#include <xxhash.h>

#include "tests/fuzz/fuzz_input.h"
#include "tiers/nvme/record_format.h"
#include "tiers/nvme/superblock.h"

namespace kvstore {
namespace {

void OnRecord(std::string_view key, std::string_view value) {
  const std::optional<tiers::Record> record = tiers::DecodeRecord(key, value);
  if (!record.has_value()) return;
  const PageIdentity& identity = record->identity;
  const PageShape& shape = identity.shape;
  REQUIRE(shape.num_slices >= 1 && shape.num_slices <= kNumSlicesMax);
  REQUIRE(shape.slice_bytes >= 1 && shape.slot_bytes() <= kSlotBytesMax);
  REQUIRE(tiers::EncodeRecordKey({.fingerprint = identity.fingerprint,
                                  .epoch = identity.epoch,
                                  .block_index = identity.block_index,
                                  .slab = record->slab,
                                  .slot = record->slot}) == key);
  REQUIRE(tiers::EncodeRecordValue(identity, record->generation, record->key_id) == value);
}

void OnSuperblock(std::string bytes, bool is_checksum_right) {
  constexpr size_t kChecksumAt = 56;
  if (is_checksum_right && bytes.size() >= kChecksumAt + 8) {
    const uint64_t checksum = XXH3_64bits(bytes.data(), kChecksumAt);
    std::memcpy(bytes.data() + kChecksumAt, &checksum, sizeof checksum);
  }
  const absl::StatusOr<tiers::Superblock> superblock =
      tiers::DecodeSuperblock(fuzz::AsBytes(bytes));
  if (!superblock.ok()) {
    REQUIRE(absl::IsDataLoss(superblock.status()) ||
            absl::IsFailedPrecondition(superblock.status()));
    return;
  }
  const auto encoded = tiers::EncodeSuperblock(*superblock);
  const absl::StatusOr<tiers::Superblock> again = tiers::DecodeSuperblock(encoded);
  REQUIRE(again.ok() && *again == *superblock);
}

}  // namespace
}  // namespace kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace kvstore;
  fuzz::Input input(data, bytes);
  if ((input.Take<uint8_t>() & 1) == 0) {
    const std::string key = fuzz::Copy(input.TakeBytes(input.Take<uint8_t>()));
    OnRecord(key, fuzz::Copy(input.TakeRest()));
  } else {
    const bool is_checksum_right = (input.Take<uint8_t>() & 1) != 0;
    OnSuperblock(fuzz::Copy(input.TakeRest()), is_checksum_right);
  }
  return 0;
}
