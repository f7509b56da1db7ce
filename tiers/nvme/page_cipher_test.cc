// Encrypted slots: golden bytes, and everything that somebody with write access to the disk can do.
#include "tiers/nvme/page_cipher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <random>

#include "tiers/nvme/nvme_test_support.h"
#include "tiers/nvme/page_encryption.h"
#include "tiers/nvme/slot_record.h"

namespace kvstore::tiers {
namespace {

using testing::HasSubstr;

constexpr PageShape kSmallShape{.num_slices = 3, .slice_bytes = 501};  // odd on purpose
constexpr PagePlace kPlace{.slab = 2, .slot = 9, .generation = (uint64_t{7} << 40) + 1};

std::shared_ptr<const MasterKeys> Keys(const std::string& text) {
  auto keys = MasterKeys::Parse(text, "keys");
  EXPECT_TRUE(keys.ok()) << keys.status();
  return *keys;
}
std::string Hex64(char digit) { return std::string(64, digit); }
EpochSecret Secret(uint8_t first) {
  EpochSecret secret;
  for (size_t i = 0; i < secret.size(); ++i) secret[i] = static_cast<uint8_t>(first + i);
  return secret;
}

class PageCipherTest : public testing::Test {
 protected:
  PageCipherTest()
      : cipher_(Keys("1 " + Hex64('a')), TestPage::Identity(1, kSmallShape).fingerprint, 1,
                Secret(0)) {}
  // A sealed slot of page `number`.
  std::string Sealed(uint32_t number, const PagePlace& place = kPlace) {
    TestPage page(number, kSmallShape), sealed(kSmallShape);
    EXPECT_EQ(cipher_.Seal(sealed.region().data, page.region().data, page.identity(), place),
              absl::OkStatus());
    return {reinterpret_cast<const char*>(sealed.region().data), sealed.region().bytes};
  }
  absl::Status Open(std::string bytes, uint32_t number, const PagePlace& place = kPlace) {
    TestPage page(number, kSmallShape);
    auto* slot = reinterpret_cast<std::byte*>(bytes.data());
    const absl::Status status = cipher_.Open(slot, page.identity(), place);
    if (status.ok() && std::memcmp(slot, page.region().data, bytes.size()) != 0) {
      return absl::InternalError("WRONG BYTES reported as success");
    }
    return status;
  }
  PageCipher cipher_;
};

TEST_F(PageCipherTest, ASlotComesBackAsItWas) {
  for (uint32_t number = 0; number < 20; ++number) {
    EXPECT_EQ(Open(Sealed(number), number), absl::OkStatus());
  }
}

TEST_F(PageCipherTest, NothingOfThePageIsInTheSlot) {
  TestPage page(1, kSmallShape);
  const std::string plain(reinterpret_cast<const char*>(page.region().data), page.region().bytes);
  const std::string sealed = Sealed(1);
  for (size_t at = 0; at + 8 <= kSmallShape.page_bytes(); at += 8) {
    EXPECT_EQ(sealed.find(plain.substr(at, 8)), std::string::npos) << at;
  }
  // Nor its slice checksums, nor which block it is.
  EXPECT_EQ(sealed.find(plain.substr(transfer::SliceChecksumsOffset(kSmallShape), 8)),
            std::string::npos);
  EXPECT_EQ(sealed.find(std::string(16, '\x42')), std::string::npos);
}

TEST_F(PageCipherTest, TheSamePageTwiceInOnePlaceIsTwoCiphertexts) {
  EXPECT_NE(Sealed(1).substr(0, 100), Sealed(1).substr(0, 100))
      << "a rolled back superblock must not bring a nonce back";
}

TEST_F(PageCipherTest, EveryFlippedBitIsDataLoss) {
  const std::string sealed = Sealed(1);
  uint64_t flips = 0;
  for (size_t at = 0; at < sealed.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string changed = sealed;
      changed[at] = static_cast<char>(changed[at] ^ (1 << bit));
      ASSERT_TRUE(absl::IsDataLoss(Open(changed, 1))) << at << "." << bit;
      ++flips;
    }
  }
  std::printf("encrypted slot: %lu of %lu single flips detected\n", flips, flips);
}

// 100,000 times 1 to 64 flips, in plain and in encrypted slots.
TEST_F(PageCipherTest, FlipsAreDetectedInPlainAndEncryptedSlots) {
  TestPage page(1, kSmallShape);
  std::string plain(reinterpret_cast<const char*>(page.region().data), page.region().bytes);
  const uint64_t offset = TailOffset(kSmallShape);
  ASSERT_EQ(offset, 0u);  // a small page is all tail
  ASSERT_EQ(MakeTail(reinterpret_cast<std::byte*>(plain.data()), page.region().data,
                     page.identity(), kPlace.generation),
            absl::OkStatus());
  const std::string sealed = Sealed(1);
  std::mt19937_64 random(1);
  constexpr int kRounds = 100000;
  int detected_plain = 0, detected_sealed = 0;
  for (int round = 0; round < kRounds; ++round) {
    std::string a = plain, b = sealed;
    const auto flips = 1 + random() % 64;
    for (uint64_t i = 0; i < flips; ++i) {
      const size_t at = random() % a.size();
      const char mask = static_cast<char>(1 << random() % 8);
      a[at] = static_cast<char>(a[at] ^ mask);
      b[at] = static_cast<char>(b[at] ^ mask);
    }
    if (a == plain) {  // the flips undid each other
      ++detected_plain, ++detected_sealed;
      continue;
    }
    detected_plain += absl::IsDataLoss(
        AcceptSlot(reinterpret_cast<std::byte*>(a.data()), page.identity(), kPlace.generation));
    detected_sealed += absl::IsDataLoss(Open(std::move(b), 1));
  }
  EXPECT_EQ(detected_plain, kRounds);
  EXPECT_EQ(detected_sealed, kRounds);
  std::printf("detected %d and %d of %d\n", detected_plain, detected_sealed, kRounds);
}

// Valid slots, in the wrong place, generation, epoch, or of the wrong block.
TEST_F(PageCipherTest, AValidSlotIsValidInItsPlaceOnly) {
  const std::string sealed = Sealed(1);
  EXPECT_EQ(Open(sealed, 1), absl::OkStatus());
  std::mt19937_64 random(2);
  int rejected = 0;
  constexpr int kRounds = 10000;
  for (int round = 0; round < kRounds; ++round) {
    PagePlace other = kPlace;
    uint32_t number = 1;
    switch (round % 4) {
      case 0:
        other.slot = static_cast<uint32_t>(random());
        break;
      case 1:
        other.slab = static_cast<uint32_t>(random());
        break;
      case 2:
        other.generation = random();
        break;
      default:
        number = 2 + static_cast<uint32_t>(random() % 1000);
    }
    rejected += absl::IsDataLoss(Open(sealed, number, other));
  }
  EXPECT_EQ(rejected, kRounds);
  // The generation in the slot edited to match: it is bound by the tag.
  std::string edited = sealed;
  const uint64_t generation = kPlace.generation + 2;
  std::memcpy(edited.data() + TrailerOffset(kSmallShape) + offsetof(SealedTrailer, generation),
              &generation, sizeof generation);
  EXPECT_TRUE(absl::IsDataLoss(Open(edited, 1, {.slab = 2, .slot = 9, .generation = generation})));
}

TEST_F(PageCipherTest, APlainPageWithGoodChecksumsIsNotAnEncryptedOne) {
  TestPage page(1, kSmallShape);
  std::string plain(page.region().bytes, '\0');
  ASSERT_EQ(MakeTail(reinterpret_cast<std::byte*>(plain.data()), page.region().data,
                     page.identity(), kPlace.generation),
            absl::OkStatus());
  EXPECT_THAT(std::string(Open(plain, 1).message()), HasSubstr("not an encrypted page"));
}

TEST_F(PageCipherTest, EveryFieldOfTheIdentityIsBound) {
  const std::string sealed = Sealed(1);
  const auto open = [&](const std::function<void(PageIdentity&)>& change) {
    PageIdentity identity = TestPage(1, kSmallShape).identity();
    change(identity);
    std::string bytes = sealed;
    return cipher_.Open(reinterpret_cast<std::byte*>(bytes.data()), identity, kPlace);
  };
  EXPECT_EQ(open([](PageIdentity&) {}), absl::OkStatus());
  const std::function<void(PageIdentity&)> changes[] = {
      [](PageIdentity& i) { i.fingerprint.bytes[0] ^= 1; },
      [](PageIdentity& i) { i.epoch += 1; },
      [](PageIdentity& i) { i.hash.bytes[31] ^= 1; },
      [](PageIdentity& i) { i.parent.bytes[31] ^= 1; },
      [](PageIdentity& i) { i.block_index += 1; },
      [](PageIdentity& i) { i.page_checksum ^= 1; },
  };
  for (size_t i = 0; i < std::size(changes); ++i) {
    const absl::Status status = open(changes[i]);
    EXPECT_THAT(std::string(status.message()), HasSubstr("not what we wrote there")) << i;
  }
}

TEST_F(PageCipherTest, AnotherSecretAnotherKeyOrAnotherEpochOpensNothing) {
  const Fingerprint fingerprint = TestPage::Identity(1, kSmallShape).fingerprint;
  const std::string sealed = Sealed(1);
  const PageIdentity identity = TestPage(1, kSmallShape).identity();
  const PageCipher others[] = {{Keys("1 " + Hex64('a')), fingerprint, 1, Secret(1)},
                               {Keys("1 " + Hex64('b')), fingerprint, 1, Secret(0)},
                               {Keys("2 " + Hex64('a')), fingerprint, 1, Secret(0)},
                               {Keys("1 " + Hex64('a')), fingerprint, 2, Secret(0)},
                               {Keys("1 " + Hex64('a')), Fingerprint{}, 1, Secret(0)}};
  for (const PageCipher& other : others) {
    std::string bytes = sealed;
    EXPECT_TRUE(
        absl::IsDataLoss(other.Open(reinterpret_cast<std::byte*>(bytes.data()), identity, kPlace)));
  }
}

TEST_F(PageCipherTest, OldKeysDecryptAndTheNewestEncrypts) {
  const Fingerprint fingerprint = TestPage::Identity(1, kSmallShape).fingerprint;
  const PageCipher rotated(Keys("2 " + Hex64('b') + "\n1 " + Hex64('a')), fingerprint, 1,
                           Secret(0));
  EXPECT_EQ(rotated.newest_key_id(), 2u);
  const PageIdentity identity = TestPage(1, kSmallShape).identity();
  std::string bytes = Sealed(1);
  EXPECT_EQ(rotated.Open(reinterpret_cast<std::byte*>(bytes.data()), identity, kPlace),
            absl::OkStatus());
  TestPage page(1, kSmallShape), sealed(kSmallShape);
  ASSERT_EQ(rotated.Seal(sealed.region().data, page.region().data, identity, kPlace),
            absl::OkStatus());
  EXPECT_EQ(rotated.Open(sealed.region().data, identity, kPlace), absl::OkStatus());
}

TEST_F(PageCipherTest, ASourceThatDiffersIsNotEncrypted) {
  TestPage page(1, kSmallShape), sealed(kSmallShape);
  page.region().data[transfer::SliceChecksumsOffset(kSmallShape)] ^= std::byte{1};
  EXPECT_TRUE(absl::IsDataLoss(
      cipher_.Seal(sealed.region().data, page.region().data, page.identity(), kPlace)));
  // A slice that changed after its checksum was taken is caught when it is read.
  TestPage second(2, kSmallShape);
  second.region().data[0] ^= std::byte{1};
  ASSERT_EQ(cipher_.Seal(sealed.region().data, second.region().data, second.identity(), kPlace),
            absl::OkStatus());
  EXPECT_TRUE(absl::IsDataLoss(cipher_.Open(sealed.region().data, second.identity(), kPlace)));
}

TEST(MasterKeys, BadKeyFilesSayWhereAndNeverShowAKey) {
  const std::string good = "1 " + Hex64('a') + "\n";
  const std::pair<std::string, const char*> cases[] = {
      {"", "no key in it"},
      {"# only a comment\n", "no key in it"},
      {good + "2 abc\n", "keys:2: the key is not 64 hex digits"},
      {good + "x " + Hex64('b') + "\n", "keys:2: no ID"},
      {"1" + Hex64('a') + "\n", "keys:1: no space"},
      {"0 " + Hex64('b') + "\n", "keys:1: no ID"},
      {good + "1 " + Hex64('b') + "\n", "keys:2: its ID is there twice"},
      {"4294967296 " + Hex64('b') + "\n", "no ID"},
      {"1 " + Hex64('g') + "\n", "not 64 hex digits"},
      {"1 " + Hex64('a') + "00\n", "not 64 hex digits"},
  };
  for (const auto& [text, want] : cases) {
    const auto keys = MasterKeys::Parse(text, "keys");
    ASSERT_FALSE(keys.ok()) << text;
    EXPECT_THAT(std::string(keys.status().message()), HasSubstr(want));
    EXPECT_EQ(std::string(keys.status().message()).find("aaaa"), std::string::npos);
  }
  std::string many;
  for (int i = 1; i <= 17; ++i) many += std::to_string(i) + " " + Hex64('a') + "\n";
  EXPECT_FALSE(MasterKeys::Parse(many, "keys").ok());
}

TEST(PageEncryption, SecretsAreDamagedOrWhole) {
  const auto keys = Keys("1 " + Hex64('a'));
  auto encryption = PageEncryption::Create({"*"}, keys, "");
  ASSERT_TRUE(encryption.ok());
  ASSERT_TRUE((*encryption)->FindOrMake(Fingerprint{{1}}, 1).ok());
  ASSERT_TRUE((*encryption)->FindOrMake(Fingerprint{{2}}, 7).ok());
  const std::string bytes = (*encryption)->Encode();
  auto again = PageEncryption::Create({"*"}, keys, bytes);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ((*again)->num_secrets(), 2u);
  EXPECT_EQ((*again)->Encode(), bytes);
  for (size_t at = 0; at < bytes.size(); ++at) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    EXPECT_TRUE(absl::IsDataLoss(PageEncryption::Create({"*"}, keys, damaged).status())) << at;
  }
  for (size_t length = 1; length < bytes.size(); ++length) {
    EXPECT_FALSE(PageEncryption::Create({"*"}, keys, bytes.substr(0, length)).ok()) << length;
  }
}

TEST(PageEncryption, AnErasedEpochHasNoSecretAndGetsNone) {
  auto encryption = *PageEncryption::Create({"*"}, Keys("1 " + Hex64('a')), "");
  const Fingerprint a{{1}}, b{{2}};
  for (uint64_t epoch : {1, 2, 3}) ASSERT_TRUE(encryption->FindOrMake(a, epoch).ok());
  ASSERT_TRUE(encryption->FindOrMake(b, 1).ok());
  EXPECT_TRUE(encryption->Erase(a, 3));
  EXPECT_FALSE(encryption->Erase(a, 3)) << "nothing left to erase";
  EXPECT_EQ(encryption->Find(a, 1), nullptr);
  EXPECT_EQ(encryption->Find(a, 2), nullptr);
  EXPECT_NE(encryption->Find(a, 3), nullptr);
  EXPECT_NE(encryption->Find(b, 1), nullptr);
  EXPECT_TRUE(absl::IsAborted(encryption->FindOrMake(a, 2).status()));
}

TEST(PageEncryption, NamespacesAreCoveredByNameOrFingerprint) {
  const Fingerprint a{{1}}, b{{2}}, c{{3}};
  auto encryption = *PageEncryption::Create({"private", b.Hex()}, Keys("1 " + Hex64('a')), "");
  encryption->Name(a, "public");
  EXPECT_FALSE(encryption->Covers(a));
  encryption->Name(a, "private");
  encryption->Name(b, "any");
  encryption->Name(c, "other");
  EXPECT_TRUE(encryption->Covers(a));
  EXPECT_TRUE(encryption->Covers(b));
  EXPECT_FALSE(encryption->Covers(c));
}

}  // namespace
}  // namespace kvstore::tiers
