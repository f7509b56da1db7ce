// Golden bytes: what FORMAT.md shows. A change here needs a new format version in the same commit.
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "kvstore/base/block_hash.h"
#include "tiers/nvme/nvme_test_support.h"
#include "tiers/nvme/page_cipher.h"
#include "tiers/nvme/page_encryption.h"
#include "tiers/nvme/record_format.h"
#include "tiers/nvme/slot_record.h"
#include "tiers/nvme/superblock.h"

namespace kvstore::tiers {
namespace {

std::string Hex(const void* data, size_t bytes) {
  return ToHex({static_cast<const uint8_t*>(data), bytes});
}
std::string Hex(const std::string& bytes) { return Hex(bytes.data(), bytes.size()); }

// The worked example: two slices of 16 bytes, 00 01 02 ... 1f.
class ExamplePage {
 public:
  ExamplePage() {
    identity.shape = {.num_slices = 2, .slice_bytes = 16};
    for (size_t i = 0; i < 16; ++i) identity.fingerprint.bytes[i] = static_cast<uint8_t>(0xf0 + i);
    for (size_t i = 0; i < 32; ++i) identity.hash.bytes[i] = static_cast<uint8_t>(0x80 + i);
    for (size_t i = 0; i < 32; ++i) identity.parent.bytes[i] = static_cast<uint8_t>(0x40 + i);
    identity.epoch = 3;
    identity.block_index = 5;
    for (int i = 0; i < 32; ++i) slot[i] = static_cast<std::byte>(i);
    identity.page_checksum = transfer::SealSlot(slot, identity);
  }
  static constexpr uint64_t kGeneration = (uint64_t{7} << 40) + 1;
  PageIdentity identity;
  alignas(4096) std::byte slot[4096] = {};
};

TEST(NvmeFormat, Superblock) {
  Superblock superblock{
      .directory_index = 1, .directory_count = 2, .extent_bytes = 1 << 30, .opens = 7};
  for (size_t i = 0; i < 16; ++i) superblock.store_id[i] = static_cast<uint8_t>(i);
  const auto bytes = EncodeSuperblock(superblock);
  EXPECT_EQ(Hex(bytes.data(), 64),
            "564b4e766d5342310100000000000000000102030405060708090a0b0c0d0e0f"
            "0100000002000000000000400000000007000000000000006fba852bcc8e2ea9");
  for (size_t i = 64; i < bytes.size(); ++i) ASSERT_EQ(bytes[i], std::byte{0});
  EXPECT_EQ(*DecodeSuperblock(bytes), superblock);
}

TEST(NvmeFormat, IndexKeyAndValue) {
  const ExamplePage page;
  const std::string key = EncodeRecordKey({page.identity.fingerprint, 3, 5, 2, 9});
  EXPECT_EQ(Hex(key),
            "52f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff000000000000000300000005000000"
            "0200000009");
  const std::string value = EncodeRecordValue(page.identity, ExamplePage::kGeneration);
  EXPECT_EQ(Hex(value),
            "0101000000000700000200000010000000808182838485868788898a8b8c8d8e"
            "8f909192939495969798999a9b9c9d9e9f404142434445464748494a4b4c4d4e"
            "4f505152535455565758595a5b5c5d5e5f4089b6fc3868780d");
  const auto record = DecodeRecord(key, value);
  ASSERT_TRUE(record.has_value());
  EXPECT_EQ(record->identity.hash, page.identity.hash);
  EXPECT_EQ(record->identity.parent, page.identity.parent);
  EXPECT_EQ(record->identity.fingerprint, page.identity.fingerprint);
  EXPECT_EQ(record->identity.epoch, 3u);
  EXPECT_EQ(record->identity.block_index, 5u);
  EXPECT_EQ(record->identity.page_checksum, page.identity.page_checksum);
  EXPECT_EQ(record->identity.shape, page.identity.shape);
  EXPECT_EQ(record->slab, 2u);
  EXPECT_EQ(record->slot, 9u);
  EXPECT_EQ(record->generation, ExamplePage::kGeneration);
}

TEST(NvmeFormat, Slot) {
  ExamplePage page;
  alignas(4096) std::byte tail[4096];
  ASSERT_EQ(MakeTail(tail, page.slot, page.identity, ExamplePage::kGeneration), absl::OkStatus());
  EXPECT_EQ(Hex(tail, 32 + 136 + 16),
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
            "564b6574546c7231010000000200000010000000050000000100000000070000"
            "0300000000000000f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff8081828384858687"
            "88898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f4041424344454647"
            "48494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f4089b6fc3868780d"
            "792b8278d9bf6652663c468856862cce87e1dc435a79ca8d");
  for (size_t i = 32 + 136 + 16; i < sizeof tail; ++i) ASSERT_EQ(tail[i], std::byte{0});
}

// Keys and nonce of the worked example; the expected bytes were made with another implementation.
TEST(NvmeFormat, EncryptedSlot) {
  ExamplePage page;
  const auto keys = MasterKeys::Parse(
      "1 202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f", "example");
  ASSERT_TRUE(keys.ok());
  EpochSecret secret;
  for (size_t i = 0; i < secret.size(); ++i) secret[i] = static_cast<uint8_t>(0x60 + i);
  std::array<uint8_t, 12> nonce;
  for (size_t i = 0; i < nonce.size(); ++i) nonce[i] = static_cast<uint8_t>(i);
  const PageCipher cipher(*keys, page.identity.fingerprint, page.identity.epoch, secret);
  const PagePlace place{.slab = 2, .slot = 9, .generation = ExamplePage::kGeneration};
  alignas(4096) std::byte sealed[4096];
  ASSERT_EQ(cipher.Seal(sealed, page.slot, page.identity, place, &nonce), absl::OkStatus());
  EXPECT_EQ(Hex(sealed, 32 + 136 + 16),
            "46d0d2b9e822d9ea9f9cf4a2cd495ff33dc88d39771b1a1c025a8ece33a6e12a"
            "564b6b7441657331010000000100000001000000000700000001020304050607"
            "08090a0bfc7048320b56d153b7c966fa4a57a704000000000000000000000000"
            "0000000000000000000000000000000000000000000000000000000000000000"
            "0000000000000000000000000000000000000000000000000000000000000000"
            "0000000000000000b40fdd46463b233be40f9815b9d8f5cd");
  for (size_t i = 32 + 136 + 16; i < sizeof sealed; ++i) ASSERT_EQ(sealed[i], std::byte{0});
  ASSERT_EQ(cipher.Open(sealed, page.identity, place), absl::OkStatus());
  EXPECT_EQ(std::memcmp(sealed, page.slot, sizeof sealed), 0);
}

TEST(NvmeFormat, EncryptedSuperblockAndValueDifferInVersionAndKey) {
  Superblock superblock{.version = kNvmeFormatEncrypted,
                        .directory_index = 0,
                        .directory_count = 1,
                        .extent_bytes = 1 << 30,
                        .opens = 1};
  const auto bytes = EncodeSuperblock(superblock);
  EXPECT_EQ(Hex(bytes.data() + 8, 8), "0200000000000000");
  EXPECT_EQ(*DecodeSuperblock(bytes), superblock);
  const ExamplePage page;
  const std::string key = EncodeRecordKey({page.identity.fingerprint, 3, 5, 2, 9});
  const std::string plain = EncodeRecordValue(page.identity, ExamplePage::kGeneration);
  const std::string value = EncodeRecordValue(page.identity, ExamplePage::kGeneration, 7);
  EXPECT_EQ(value, std::string("\x02") + plain.substr(1) + std::string("\7\0\0\0", 4));
  EXPECT_EQ(DecodeRecord(key, value)->key_id, 7u);
  EXPECT_EQ(DecodeRecord(key, plain)->key_id, 0u);
  EXPECT_FALSE(DecodeRecord(key, std::string("\1") + value.substr(1)).has_value());
  EXPECT_FALSE(DecodeRecord(key, std::string("\2") + plain.substr(1)).has_value());
  const std::string without_key = value.substr(0, value.size() - 4) + std::string(4, '\0');
  EXPECT_FALSE(DecodeRecord(key, without_key).has_value());
}

TEST(NvmeFormat, Secrets) {
  const auto keys = MasterKeys::Parse(
      "1 202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f", "example");
  auto encryption = PageEncryption::Create({"*"}, *keys, "");
  ASSERT_TRUE(encryption.ok());
  const ExamplePage page;
  ASSERT_TRUE((*encryption)->FindOrMake(page.identity.fingerprint, 3).ok());
  const std::string bytes = (*encryption)->Encode();
  ASSERT_EQ(bytes.size(), 24u + 20 + 56 + 8);
  EXPECT_EQ(Hex(bytes.substr(0, 68)),
            "564b6e765365633101000000010000000100000000000000"
            "01000000c14bb073e6cee19f836e910948f99e7e"
            "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff0300000000000000");
}

TEST(NvmeFormat, KeysSortMetadataFirstAndParentsBeforeChildren) {
  const Fingerprint low{}, high{{1}};
  const std::string order[] = {
      "M"
      "anything",
      EncodeRecordKey({low, 1, 0, 9, 9}),
      EncodeRecordKey({low, 1, 1, 0, 0}),
      EncodeRecordKey({low, 1, 255, 0, 0}),
      EncodeRecordKey({low, 1, 256, 0, 0}),
      EncodeRecordKey({low, 2, 0, 0, 0}),
      EncodeRecordKey({low, 256, 0, 0, 0}),
      EncodeRecordKey({high, 0, 0, 0, 0}),
  };
  for (size_t i = 1; i < std::size(order); ++i) EXPECT_LT(order[i - 1], order[i]) << i;
}

TEST(NvmeFormat, ImpossibleRecordsDoNotDecode) {
  const ExamplePage page;
  const std::string key = EncodeRecordKey({page.identity.fingerprint, 3, 5, 2, 9});
  const std::string value = EncodeRecordValue(page.identity, 1);
  for (size_t bytes = 0; bytes < value.size(); ++bytes) {
    EXPECT_FALSE(DecodeRecord(key, value.substr(0, bytes)).has_value());
  }
  EXPECT_FALSE(DecodeRecord(key, value + "x").has_value());
  EXPECT_FALSE(DecodeRecord(key.substr(1), value).has_value());
  std::string version = value;
  version[0] = 3;
  EXPECT_FALSE(DecodeRecord(key, version).has_value());
  for (const PageShape shape : {PageShape{0, 1}, PageShape{1, 0}, PageShape{1025, 1},
                                PageShape{1024, 1 << 20}, PageShape{1, UINT32_MAX}}) {
    PageIdentity identity = page.identity;
    identity.shape = shape;
    EXPECT_FALSE(DecodeRecord(key, EncodeRecordValue(identity, 1)).has_value());
  }
}

}  // namespace
}  // namespace kvstore::tiers
