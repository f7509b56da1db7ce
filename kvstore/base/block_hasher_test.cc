#include "kvstore/base/block_hasher.h"

#include <gtest/gtest.h>

#include <numeric>
#include <utility>
#include <vector>

namespace kvstore {
namespace {

Fingerprint TestFingerprint() {
  Fingerprint f;
  std::iota(f.bytes.begin(), f.bytes.end(), uint8_t{0});
  return f;
}

// Golden vectors: computed with Python's hashlib. Changing one breaks every cache on disk.
//   root = sha256(b"kvstore root v1" + bytes(range(16)))
//   b0 = sha256(root + struct.pack("<4I", 1, 2, 3, 4)); b1 = sha256(b0 + struct.pack("<4I", 5, 6,
//   7, 0xffffffff))
TEST(BlockHasher, GoldenVectors) {
  const BlockHash root = RootHash(TestFingerprint());
  EXPECT_EQ(root.Hex(), "122629b5f6936ed26d765e071175dae02b172f10931a9581acb1633268bacd62");
  const std::vector<uint32_t> tokens = {1, 2, 3, 4, 5, 6, 7, 0xffffffff, 9};
  const std::vector<BlockHash> hashes = HashBlocks(root, tokens, 4);
  ASSERT_EQ(hashes.size(), 2u) << "the tail is not a block";
  EXPECT_EQ(hashes[0].Hex(), "884f8330456ed5a9d1133d05d3ecade3fc97809b3d01540e776df448817fc180");
  EXPECT_EQ(hashes[1].Hex(), "1d405227cca81e8221dd336026e8a1ec5a804ce029540eb0e4d70e46254a4da3");
  EXPECT_EQ(HashBlock(root, std::vector<uint32_t>{1, 2, 3, 4}, "image:0:abc").Hex(),
            "b5b61882af638c54d5c12b5ecd665c86f8ebc82de1eba9a2860200d5719cbbcb");
}

// The same, for sizes that are hashed step by step: sha256(root + struct.pack("<nI", *range(n))).
TEST(BlockHasher, GoldenVectorsOfUsualBlockSizes) {
  const BlockHash root = RootHash(TestFingerprint());
  const std::pair<size_t, const char*> golden[] = {
      {16, "f6d9849aa0d9186eda328d12e353d439e3892a084689540f2be3788da1f81bec"},
      {32, "913dbf42c2ac8fb94882cbd77314f05384fc849ceb0f8d744a0b8aa1c88ecd7c"},
      {48, "4be7767ecf24b7ce5466b9d1a5d5efde4570d16fbdf1d4100a1951067c40a987"},
      {256, "f657f7ac66c4affe2b21cc9883335e807ceaac21c0dded5bbfa9a466a4e0d633"},
  };
  for (const auto& [num_tokens, hex] : golden) {
    std::vector<uint32_t> tokens(num_tokens);
    std::iota(tokens.begin(), tokens.end(), 0u);
    EXPECT_EQ(HashBlock(root, tokens).Hex(), hex) << num_tokens;
  }
}

TEST(BlockHasher, EngineHashOf32BytesIsTakenAsItIs) {
  std::vector<uint8_t> bytes(32);
  std::iota(bytes.begin(), bytes.end(), uint8_t{7});
  EXPECT_EQ(ToHex(EngineHash(bytes)->bytes), ToHex(bytes));
}

// sha256(b"kvstore engine hash v1" + bytes([8]) + bytes(range(8)))
TEST(BlockHasher, EngineHashOfOtherLengthsIsFolded) {
  std::vector<uint8_t> bytes(8);
  std::iota(bytes.begin(), bytes.end(), uint8_t{0});
  EXPECT_EQ(EngineHash(bytes)->Hex(),
            "84d23e713c7cc60284325802c7284c94d373184f8634cb5ac5acded15a67b0ea");
  EXPECT_FALSE(EngineHash({}).ok());
  EXPECT_FALSE(EngineHash(std::vector<uint8_t>(65)).ok());
}

TEST(BlockHasher, EveryInputChangesTheHash) {
  const BlockHash root = RootHash(TestFingerprint());
  const std::vector<uint32_t> tokens = {1, 2, 3, 4};
  const BlockHash hash = HashBlock(root, tokens);
  EXPECT_NE(HashBlock(RootHash(Fingerprint{}), tokens), hash);
  EXPECT_NE(HashBlock(root, std::vector<uint32_t>{1, 2, 4, 3}), hash);
  EXPECT_NE(HashBlock(root, tokens, "x"), hash);
}

}  // namespace
}  // namespace kvstore
