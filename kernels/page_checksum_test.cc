#include "kernels/page_checksum.h"

#include <xxhash.h>

#include <cstring>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace kvstore::kernels {
namespace {

constexpr uint64_t kSeeds[] = {0, 1, 0x9E3779B97F4A7C15U, ~uint64_t{0}};
constexpr size_t kGuardBytes = 64;
constexpr std::byte kGuard{0xA5};

std::vector<std::byte> RandomBytes(size_t bytes, uint32_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> out(bytes);
  for (std::byte& b : out) b = static_cast<std::byte>(random());
  return out;
}

class PageChecksum : public testing::TestWithParam<ChecksumPath> {
 protected:
  void SetUp() override {
    if (!IsSupported(GetParam())) GTEST_SKIP() << "this CPU has no " << PathName(GetParam());
  }
};

TEST_P(PageChecksum, EqualsLibxxhashForEveryLengthSeedAndAlignment) {
  const std::vector<std::byte> data = RandomBytes(3 * 4096 + 64, 1);
  for (size_t bytes = 0; bytes <= 3 * 4096; bytes += bytes < 2200 ? 1 : 61) {
    for (uint64_t seed : kSeeds) {
      const std::byte* at = data.data() + bytes % 37;
      ASSERT_EQ(ChecksumBy(GetParam(), at, bytes, seed), XXH3_64bits_withSeed(at, bytes, seed))
          << bytes << " bytes, seed " << seed;
    }
  }
}

TEST_P(PageChecksum, CopyEqualsLibxxhashAndTouchesNothingElse) {
  constexpr size_t kBytesMax = 3 * 4096;
  const std::vector<std::byte> data = RandomBytes(kBytesMax + 64, 2);
  std::vector<std::byte> storage(kBytesMax + 256);
  for (size_t bytes = 0; bytes <= kBytesMax; bytes += bytes < 2200 ? 1 : 53) {
    for (size_t misaligned : {size_t{0}, size_t{1}, size_t{8}, size_t{32}}) {
      const std::byte* src = data.data() + bytes % 29;
      const size_t align = (64 - reinterpret_cast<uintptr_t>(storage.data()) % 64) % 64;
      std::byte* dst = storage.data() + align + kGuardBytes + misaligned;
      std::fill(storage.begin(), storage.end(), kGuard);
      const uint64_t seed = kSeeds[bytes % 4];
      ASSERT_EQ(CopyChecksumBy(GetParam(), dst, src, bytes, seed),
                XXH3_64bits_withSeed(src, bytes, seed))
          << bytes << " bytes at +" << misaligned;
      ASSERT_EQ(std::memcmp(dst, src, bytes), 0) << bytes;
      for (const std::byte* b = storage.data(); b < dst; ++b) ASSERT_EQ(*b, kGuard) << bytes;
      for (const std::byte* b = dst + bytes; b < storage.data() + storage.size(); ++b) {
        ASSERT_EQ(*b, kGuard) << bytes;
      }
    }
  }
}

TEST_P(PageChecksum, BigPiecesAgree) {
  const size_t bytes = (size_t{5} << 20) + 17;
  const std::vector<std::byte> data = RandomBytes(bytes, 3);
  std::vector<std::byte> copy(bytes);
  const uint64_t want = XXH3_64bits_withSeed(data.data(), bytes, 7);
  EXPECT_EQ(ChecksumBy(GetParam(), data.data(), bytes, 7), want);
  EXPECT_EQ(CopyChecksumBy(GetParam(), copy.data(), data.data(), bytes, 7), want);
  EXPECT_EQ(copy, data);
}

INSTANTIATE_TEST_SUITE_P(Paths, PageChecksum,
                         testing::Values(ChecksumPath::kPortable, ChecksumPath::kAvx2),
                         [](const auto& param_info) { return PathName(param_info.param); });

TEST(PageChecksumDispatch, TheBestPathIsSupportedAndComputesTheSameBits) {
  EXPECT_TRUE(IsSupported(BestChecksumPath()));
  const std::vector<std::byte> data = RandomBytes(10000, 4);
  std::vector<std::byte> copy(data.size());
  EXPECT_EQ(Checksum(data.data(), data.size(), 9),
            XXH3_64bits_withSeed(data.data(), data.size(), 9));
  EXPECT_EQ(CopyChecksum(copy.data(), data.data(), data.size(), 9),
            XXH3_64bits_withSeed(data.data(), data.size(), 9));
}

}  // namespace
}  // namespace kvstore::kernels
