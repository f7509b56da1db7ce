#include "transfer/memory/page_codec.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvstore::transfer {
namespace {

using testing::HasSubstr;

PageIdentity MakeIdentity(PageShape shape) {
  PageIdentity identity;
  identity.shape = shape;
  for (size_t i = 0; i < Fingerprint::kBytes; ++i) identity.fingerprint.bytes[i] = uint8_t(i + 1);
  for (size_t i = 0; i < BlockHash::kBytes; ++i) identity.hash.bytes[i] = uint8_t(3 * i + 1);
  for (size_t i = 0; i < BlockHash::kBytes; ++i) identity.parent.bytes[i] = uint8_t(5 * i + 1);
  identity.epoch = 9;
  identity.block_index = 4;
  return identity;
}

// A sealed slot, its page and its identity. Slices of 5 bytes exercise the padding before the
// trailer.
class PageCodec : public testing::TestWithParam<PageShape> {
 protected:
  void SetUp() override {
    std::mt19937_64 random(7);
    page_.resize(identity_.shape.page_bytes());
    for (std::byte& b : page_) b = static_cast<std::byte>(random());
    slot_.assign(identity_.shape.slot_bytes(), std::byte{0xEE});
    identity_.page_checksum = CopyIntoSlot(slot_.data(), page_.data(), identity_);
    out_.assign(page_.size(), std::byte{0});
    copy_.assign(slot_.size(), std::byte{0xDD});
  }
  bool AllReadersAccept(const std::vector<std::byte>& slot, const PageIdentity& expect) {
    return CheckSliceTable(slot.data(), expect).ok() && VerifySlot(slot.data(), expect).ok() &&
           CopyFromSlot(out_.data(), slot.data(), expect).ok() &&
           CopySlot(copy_.data(), slot.data(), expect).ok();
  }
  // True when every function that checks slices reports DataLoss.
  bool AllReadersRefuse(const std::vector<std::byte>& slot, const PageIdentity& expect) {
    return absl::IsDataLoss(VerifySlot(slot.data(), expect)) &&
           absl::IsDataLoss(CopyFromSlot(out_.data(), slot.data(), expect)) &&
           absl::IsDataLoss(CopySlot(copy_.data(), slot.data(), expect));
  }
  size_t table_offset() const { return SliceChecksumsOffset(identity_.shape); }
  size_t table_end() const { return table_offset() + 8 * size_t{identity_.shape.num_slices}; }

  PageIdentity identity_ = MakeIdentity(GetParam());
  std::vector<std::byte> page_, slot_, out_, copy_;
};

TEST_P(PageCodec, SealedByItsChecksumsIsTheSameSlot) {
  const uint64_t block_seed = BlockSeed(identity_.fingerprint, identity_.hash);
  std::vector<uint64_t> checksums;
  for (uint32_t i = 0; i < identity_.shape.num_slices; ++i) {
    checksums.push_back(SliceChecksum(page_.data() + i * identity_.shape.slice_bytes,
                                      identity_.shape.slice_bytes, block_seed, i));
  }
  const uint64_t page_bytes = identity_.shape.page_bytes();
  std::vector<std::byte> tail(slot_.size() - page_bytes, std::byte{0xCC});
  EXPECT_EQ(SealTail(tail.data(), checksums, identity_), identity_.page_checksum);
  EXPECT_TRUE(std::ranges::equal(tail, std::span(slot_).subspan(page_bytes)));
}

TEST_P(PageCodec, SavedPageIsReadBackByEveryWay) {
  EXPECT_TRUE(AllReadersAccept(slot_, identity_));
  EXPECT_EQ(out_, page_);
  EXPECT_EQ(copy_, slot_);
  SliceTable table;
  ASSERT_TRUE(table.Load(slot_.data(), identity_).ok());
  for (uint32_t i = 0; i < identity_.shape.num_slices; ++i) {
    std::vector<std::byte> slice(identity_.shape.slice_bytes);
    ASSERT_TRUE(CopySliceFromSlot(slice.data(), slot_.data(), identity_, table, i).ok());
    EXPECT_EQ(std::memcmp(slice.data(), page_.data() + i * slice.size(), slice.size()), 0);
  }
}

TEST_P(PageCodec, SealingInPlaceGivesTheSameSlot) {
  std::vector<std::byte> in_place(slot_.size(), std::byte{0x77});
  std::memcpy(in_place.data(), page_.data(), page_.size());
  EXPECT_EQ(SealSlot(in_place.data(), identity_), identity_.page_checksum);
  EXPECT_EQ(in_place, slot_);
}

TEST_P(PageCodec, EveryFlippedByteOfPageAndSliceTableIsCaught) {
  const size_t step = page_.size() > 20000 ? 97 : 1;
  SliceTable table;
  ASSERT_TRUE(table.Load(slot_.data(), identity_).ok());
  for (size_t at = 0; at < page_.size(); at += step) {
    slot_[at] ^= std::byte{0x10};
    ASSERT_TRUE(AllReadersRefuse(slot_, identity_)) << "page byte " << at;
    const uint32_t slice = static_cast<uint32_t>(at / identity_.shape.slice_bytes);
    ASSERT_TRUE(
        absl::IsDataLoss(CopySliceFromSlot(out_.data(), slot_.data(), identity_, table, slice)));
    ASSERT_TRUE(CheckSliceTable(slot_.data(), identity_).ok());
    slot_[at] ^= std::byte{0x10};
  }
  for (size_t at = table_offset(); at < table_end(); ++at) {
    slot_[at] ^= std::byte{0x01};
    ASSERT_TRUE(AllReadersRefuse(slot_, identity_)) << "table byte " << at;
    ASSERT_TRUE(absl::IsDataLoss(CheckSliceTable(slot_.data(), identity_)));
    ASSERT_TRUE(absl::IsDataLoss(table.Load(slot_.data(), identity_)));
    slot_[at] ^= std::byte{0x01};
  }
  EXPECT_TRUE(AllReadersAccept(slot_, identity_));
}

TEST_P(PageCodec, ForgedSliceWithItsOwnChecksumIsCaughtByThePageChecksum) {
  slot_[0] ^= std::byte{1};
  PageIdentity forged = identity_;
  forged.page_checksum = SealSlot(slot_.data(), identity_);
  EXPECT_TRUE(AllReadersAccept(slot_, forged));
  EXPECT_TRUE(AllReadersRefuse(slot_, identity_));
}

TEST_P(PageCodec, AnotherBlocksBytesAreCaught) {
  PageIdentity other = identity_;
  other.hash.bytes[31] ^= 1;
  EXPECT_TRUE(AllReadersRefuse(slot_, other));
  other = identity_;
  other.fingerprint.bytes[0] ^= 1;
  EXPECT_TRUE(AllReadersRefuse(slot_, other));
  other = identity_;
  other.page_checksum ^= 1;
  EXPECT_TRUE(AllReadersRefuse(slot_, other));
}

TEST_P(PageCodec, CopiesOfASlotNeverCarryAForgedTrailerOrStaleBytes) {
  for (size_t at = TrailerOffset(identity_.shape); at < table_offset(); ++at) {
    slot_[at] = std::byte{0xAB};
  }
  for (size_t at = table_end(); at < slot_.size(); ++at) slot_[at] = std::byte{0xCD};
  ASSERT_TRUE(CopySlot(copy_.data(), slot_.data(), identity_).ok());
  std::vector<std::byte> want(slot_.size(), std::byte{0});
  (void)CopyIntoSlot(want.data(), page_.data(), identity_);
  EXPECT_EQ(copy_, want);
}

TEST_P(PageCodec, EveryFlippedByteOfARecordsTrailerOrTableIsCaught) {
  SealRecord(slot_.data(), identity_, 41);
  ASSERT_TRUE(CheckRecord(slot_.data(), identity_, 41).ok());
  ASSERT_TRUE(AllReadersAccept(slot_, identity_));
  for (size_t at = TrailerOffset(identity_.shape); at < table_end(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      slot_[at] ^= std::byte(1 << bit);
      ASSERT_TRUE(absl::IsDataLoss(CheckRecord(slot_.data(), identity_, 41))) << at;
      slot_[at] ^= std::byte(1 << bit);
    }
  }
}

std::string ShapeName(const testing::TestParamInfo<PageShape>& param) {
  return std::to_string(param.param.num_slices) + "x" + std::to_string(param.param.slice_bytes);
}
INSTANTIATE_TEST_SUITE_P(Shapes, PageCodec,
                         testing::Values(PageShape{1, 5}, PageShape{3, 5}, PageShape{2, 240},
                                         PageShape{4, 256}, PageShape{7, 1000}, PageShape{2, 4096},
                                         PageShape{32, 8192}, PageShape{kNumSlicesMax, 8}),
                         ShapeName);

TEST(PageCodecSwap, SwappedSlicesWithTheirChecksumsAreCaught) {
  PageIdentity identity = MakeIdentity({3, 512});
  std::vector<std::byte> page(identity.shape.page_bytes());
  for (size_t i = 0; i < page.size(); ++i) page[i] = static_cast<std::byte>(i / 512 + 1);
  std::vector<std::byte> slot(identity.shape.slot_bytes()), out(page.size());
  identity.page_checksum = CopyIntoSlot(slot.data(), page.data(), identity);
  std::byte* table = slot.data() + SliceChecksumsOffset(identity.shape);
  std::swap_ranges(slot.data(), slot.data() + 512, slot.data() + 512);
  EXPECT_TRUE(absl::IsDataLoss(CopyFromSlot(out.data(), slot.data(), identity)));
  std::swap_ranges(table, table + 8, table + 8);
  EXPECT_TRUE(absl::IsDataLoss(CopyFromSlot(out.data(), slot.data(), identity)));
}

TEST(PageCodecSwap, SliceAndChecksumChangedTogetherAfterTheTableWasLoadedAreCaught) {
  PageIdentity identity = MakeIdentity({2, 512});
  std::vector<std::byte> page(identity.shape.page_bytes(), std::byte{1});
  std::vector<std::byte> slot(identity.shape.slot_bytes()), out(512);
  identity.page_checksum = CopyIntoSlot(slot.data(), page.data(), identity);
  SliceTable table;
  ASSERT_TRUE(table.Load(slot.data(), identity).ok());
  slot[5] ^= std::byte{1};
  (void)SealSlot(slot.data(), identity);  // the attacker knows the seed
  EXPECT_TRUE(absl::IsDataLoss(CopySliceFromSlot(out.data(), slot.data(), identity, table, 0)));
  EXPECT_TRUE(CopySliceFromSlot(out.data(), slot.data(), identity, table, 1).ok());
}

TEST(PageCodecSwap, EqualSlicesHaveDifferentChecksums) {
  const std::vector<std::byte> slice(300, std::byte{1});
  EXPECT_NE(SliceChecksum(slice.data(), 300, 5, 0), SliceChecksum(slice.data(), 300, 5, 1));
  EXPECT_NE(SliceChecksum(slice.data(), 300, 5, 0), SliceChecksum(slice.data(), 300, 6, 0));
}

TEST(PageCodecRecord, NamesTheFirstFieldThatDiffers) {
  PageIdentity identity = MakeIdentity({2, 64});
  std::vector<std::byte> page(identity.shape.page_bytes(), std::byte{3});
  std::vector<std::byte> slot(identity.shape.slot_bytes());
  identity.page_checksum = CopyIntoSlot(slot.data(), page.data(), identity);
  SealRecord(slot.data(), identity, 41);
  const auto expect_field = [&](const PageIdentity& expect, uint64_t generation, const char* name) {
    const absl::Status status = CheckRecord(slot.data(), expect, generation);
    EXPECT_TRUE(absl::IsDataLoss(status)) << name;
    EXPECT_THAT(std::string(status.message()), HasSubstr(name));
  };
  PageIdentity other = identity;
  other.fingerprint.bytes[3] ^= 1;
  expect_field(other, 41, "fingerprint");
  other = identity;
  other.epoch += 1;
  expect_field(other, 41, "epoch");
  other = identity;
  other.hash.bytes[3] ^= 1;
  expect_field(other, 41, "hash");
  other = identity;
  other.parent.bytes[3] ^= 1;
  expect_field(other, 41, "parent");
  other = identity;
  other.block_index += 1;
  expect_field(other, 41, "block index");
  other = identity;
  other.page_checksum += 1;
  expect_field(other, 41, "page checksum");
  expect_field(identity, 43, "generation");
  slot[TrailerOffset(identity.shape) + offsetof(PageTrailer, record_checksum)] ^= std::byte{1};
  expect_field(identity, 41, "record checksum");
}

TEST(PageCodecRecord, SliceIndexOutOfRangeIsRefused) {
  PageIdentity identity = MakeIdentity({2, 64});
  std::vector<std::byte> slot(identity.shape.slot_bytes()), slice(64);
  EXPECT_TRUE(absl::IsInvalidArgument(
      CopySliceFromSlot(slice.data(), slot.data(), identity, SliceTable(), 2)));
}

// Golden: other implementations (CUDA, Python) and files on disk depend on these bits. Computed by
// a Python program over libxxhash.
TEST(PageCodecGolden, SeedsAndChecksumsAreFixed) {
  const PageIdentity identity = MakeIdentity({2, 512});
  const uint64_t seed = BlockSeed(identity.fingerprint, identity.hash);
  std::vector<std::byte> page(1024);
  for (size_t i = 0; i < page.size(); ++i) page[i] = static_cast<std::byte>(i * 7);
  std::vector<std::byte> slot(identity.shape.slot_bytes());
  EXPECT_EQ(seed, 4921843501078554583u);
  EXPECT_EQ(SliceChecksum(page.data(), 512, seed, 0), 417121312940557104u);
  EXPECT_EQ(SliceChecksum(page.data() + 512, 512, seed, 1), 12426594269053526598u);
  EXPECT_EQ(CopyIntoSlot(slot.data(), page.data(), identity), 6157633558349164536u);
}

}  // namespace
}  // namespace kvstore::transfer
