#include "tools/kvctl/token_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "kvstore/base/block_hasher.h"

namespace kvstore::kvctl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Write(const std::string& text) {
  const std::string path = testing::TempDir() + "tokens_" +
                           testing::UnitTest::GetInstance()->current_test_info()->name() + ".txt";
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

absl::StatusOr<std::vector<uint32_t>> ReadAll(const std::string& text, size_t piece = 3) {
  absl::StatusOr<TokenFile> file = TokenFile::Open(Write(text));
  if (!file.ok()) return file.status();
  std::vector<uint32_t> out;
  std::vector<uint32_t> buffer(piece);
  while (true) {
    absl::StatusOr<size_t> count = file->Read(buffer);
    if (!count.ok()) return count.status();
    out.insert(out.end(), buffer.begin(), buffer.begin() + static_cast<ptrdiff_t>(*count));
    if (*count < piece) return out;
  }
}

std::string ErrorOf(const std::string& text) { return ReadAll(text).status().ToString(); }

TEST(TokenFile, AnyWhitespaceSeparates) {
  EXPECT_THAT(*ReadAll("  1\t2\n3\r\n4\v5\f6 "), ElementsAre(1, 2, 3, 4, 5, 6));
}

TEST(TokenFile, TheWholeRangeIsValid) {
  EXPECT_THAT(*ReadAll("0 4294967295 0007"), ElementsAre(0, 4294967295u, 7));
}

TEST(TokenFile, AnEmptyFileHasNoTokens) {
  EXPECT_THAT(*ReadAll(""), ElementsAre());
  EXPECT_THAT(*ReadAll("\n \n"), ElementsAre());
}

TEST(TokenFile, ErrorsNameLineColumnAndWord) {
  EXPECT_THAT(ErrorOf("1 2\n3  12a 4"), HasSubstr(":2:4: \"12a\" is not a token id"));
  EXPECT_THAT(ErrorOf("1\n\n\n-5"), HasSubstr(":4:1: \"-5\""));
  EXPECT_THAT(ErrorOf("4294967296"), HasSubstr(":1:1: \"4294967296\""));
  EXPECT_THAT(ErrorOf("1 1.5"), HasSubstr(":1:3: \"1.5\""));
  EXPECT_THAT(ErrorOf("1,2"), HasSubstr("\"1,2\""));
  EXPECT_THAT(ErrorOf(std::string("1 \0 2", 5)), HasSubstr(":1:3:"));
}

TEST(TokenFile, ALongWordIsShownCutAndNotRead) {
  const std::string error = ErrorOf("1 " + std::string(1 << 20, '9'));
  EXPECT_THAT(error, HasSubstr("\"999999999999999999999999\""));
  EXPECT_LT(error.size(), 300u);
}

TEST(TokenFile, ALongRunOfLeadingZerosDoesNotOverflow) {
  EXPECT_THAT(*ReadAll(std::string(100000, '0') + "12"), ElementsAre(12));
}

TEST(TokenFile, AWordAcrossTheBufferEdgeIsOneToken) {
  std::string text(65534, ' ');
  text += "123456 7";
  EXPECT_THAT(*ReadAll(text), ElementsAre(123456, 7));
}

TEST(TokenFile, AMissingFileOrAFolderIsInvalid) {
  EXPECT_TRUE(absl::IsInvalidArgument(TokenFile::Open("/no/such/file").status()));
  absl::StatusOr<TokenFile> folder = TokenFile::Open(testing::TempDir());
  ASSERT_TRUE(folder.ok());
  std::vector<uint32_t> buffer(1);
  EXPECT_TRUE(absl::IsInvalidArgument(folder->Read(buffer).status()));
}

TEST(HashTokenFile, GivesTheHashesOfWholeBlocksOnly) {
  const Fingerprint fingerprint{.bytes = {1, 2, 3}};
  const std::vector<uint32_t> tokens = {5, 6, 7, 8, 9};
  const absl::StatusOr<TokenPrefix> prefix = HashTokenFile(Write("5 6 7 8 9"), fingerprint, 2);
  ASSERT_TRUE(prefix.ok()) << prefix.status();
  EXPECT_EQ(prefix->num_tokens, 5u);
  EXPECT_EQ(prefix->hashes, HashBlocks(RootHash(fingerprint), tokens, 2));
  EXPECT_EQ(prefix->hashes.size(), 2u);
}

TEST(HashTokenFile, RefusesMoreBlocksThanOneCallTakes) {
  std::string text;
  for (size_t i = 0; i < kBlocksMax; ++i) text += "1\n";
  EXPECT_EQ(HashTokenFile(Write(text), {}, 1)->hashes.size(), kBlocksMax);
  const absl::Status status = HashTokenFile(Write(text + "1"), {}, 1).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(status.ToString(), HasSubstr("more than 65536 blocks"));
}

}  // namespace
}  // namespace kvstore::kvctl
