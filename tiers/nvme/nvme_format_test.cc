// Golden bytes: what FORMAT.md shows. A change here needs a new format version in the same commit.
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "kvstore/base/block_hash.h"
#include "tiers/nvme/nvme_test_support.h"
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
  version[0] = 2;
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
