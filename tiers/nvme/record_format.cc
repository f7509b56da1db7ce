#include "tiers/nvme/record_format.h"

#include "tiers/nvme/disk_bytes.h"

namespace kvstore::tiers {
namespace {

constexpr uint8_t kPlainVersion = 1;
constexpr uint8_t kEncryptedVersion = 2;  // and the key's ID at the end
constexpr size_t kKeyBytes = 1 + 16 + 8 + 4 + 4 + 4;
constexpr size_t kValueBytes = 1 + 8 + 4 + 4 + 32 + 32 + 8;
constexpr size_t kEncryptedValueBytes = kValueBytes + 4;

// Big-endian, so that byte order is numeric order.
template <typename T>
void AppendBigEndian(std::string& out, T value) {
  for (int shift = 8 * (static_cast<int>(sizeof value) - 1); shift >= 0; shift -= 8) {
    out.push_back(static_cast<char>(value >> shift));
  }
}

template <typename T>
T TakeBigEndian(std::string_view& in) {
  T value = 0;
  for (size_t i = 0; i < sizeof value; ++i) {
    value = static_cast<T>(value << 8 | static_cast<uint8_t>(in[i]));
  }
  in.remove_prefix(sizeof value);
  return value;
}

bool IsPossible(const PageShape& shape) {
  return shape.num_slices >= 1 && shape.num_slices <= kNumSlicesMax && shape.slice_bytes >= 1 &&
         shape.slot_bytes() <= kSlotBytesMax;
}

}  // namespace

std::string EncodeRecordKey(const RecordKey& key) {
  std::string out;
  out.reserve(kKeyBytes);
  out.push_back(kRecordKeyPrefix);
  Append(out, key.fingerprint.bytes);
  AppendBigEndian(out, key.epoch);
  AppendBigEndian(out, key.block_index);
  AppendBigEndian(out, key.slab);
  AppendBigEndian(out, key.slot);
  return out;
}

std::string EncodeRecordValue(const PageIdentity& identity, uint64_t generation, uint32_t key_id) {
  std::string out;
  out.reserve(kEncryptedValueBytes);
  Append(out, key_id == 0 ? kPlainVersion : kEncryptedVersion);
  Append(out, generation);
  Append(out, identity.shape.num_slices);
  Append(out, identity.shape.slice_bytes);
  Append(out, identity.hash.bytes);
  Append(out, identity.parent.bytes);
  Append(out, identity.page_checksum);
  if (key_id != 0) Append(out, key_id);
  return out;
}

std::optional<Record> DecodeRecord(std::string_view key, std::string_view value) {
  if (key.size() != kKeyBytes || value.size() < kValueBytes) return std::nullopt;
  if (Take<char>(key) != kRecordKeyPrefix) return std::nullopt;
  const bool is_encrypted = value[0] == kEncryptedVersion;
  if (!is_encrypted && value[0] != kPlainVersion) return std::nullopt;
  if (value.size() != (is_encrypted ? kEncryptedValueBytes : kValueBytes)) return std::nullopt;
  value.remove_prefix(1);
  Record record;
  PageIdentity& identity = record.identity;
  identity.fingerprint.bytes = Take<std::array<uint8_t, Fingerprint::kBytes>>(key);
  identity.epoch = TakeBigEndian<uint64_t>(key);
  identity.block_index = TakeBigEndian<uint32_t>(key);
  record.slab = TakeBigEndian<uint32_t>(key);
  record.slot = TakeBigEndian<uint32_t>(key);
  record.generation = Take<uint64_t>(value);
  identity.shape.num_slices = Take<uint32_t>(value);
  identity.shape.slice_bytes = Take<uint32_t>(value);
  identity.hash.bytes = Take<std::array<uint8_t, BlockHash::kBytes>>(value);
  identity.parent.bytes = Take<std::array<uint8_t, BlockHash::kBytes>>(value);
  identity.page_checksum = Take<uint64_t>(value);
  if (is_encrypted) record.key_id = Take<uint32_t>(value);
  if (!IsPossible(identity.shape) || is_encrypted != (record.key_id != 0)) return std::nullopt;
  return record;
}

}  // namespace kvstore::tiers
