#include "tools/kvctl/spec_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>

namespace kvstore::kvctl {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<v1::NamespaceSpec> Read(const std::string& text) {
  const std::string path = testing::TempDir() + "spec_" +
                           testing::UnitTest::GetInstance()->current_test_info()->name() + ".toml";
  std::ofstream(path) << text;
  return ReadSpecFile(path);
}

std::string ErrorOf(const std::string& text) {
  const absl::Status status = Read(text).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  return status.ToString();
}

TEST(SpecFile, FlagNamesAndFieldNamesMeanTheSame) {
  const auto flags =
      Read("model = 'm'\nrevision = 'r'\ndtype = 'bf16'\nslices = 4\nslice_bytes = '64KiB'\n");
  const auto fields = Read(
      "model = 'm'\nweights_revision = 'r'\nkv_dtype = 'bf16'\nnum_slices = 4\nslice_bytes = "
      "65536\n");
  ASSERT_TRUE(flags.ok()) << flags.status();
  ASSERT_TRUE(fields.ok()) << fields.status();
  EXPECT_EQ(flags->SerializeAsString(), fields->SerializeAsString());
  EXPECT_EQ(flags->slice_bytes(), 65536u);
}

TEST(SpecFile, AnUnknownKeyIsRefusedWithItsLineAndTheValidOnes) {
  const std::string error = ErrorOf("model = 'm'\nblock_size = 16\n");
  EXPECT_THAT(error, HasSubstr(":2: block_size is not a key"));
  EXPECT_THAT(error, HasSubstr("block_tokens"));
  EXPECT_THAT(error, HasSubstr("revision"));
}

TEST(SpecFile, OneFieldUnderTwoNamesIsRefused) {
  EXPECT_THAT(ErrorOf("dtype = 'bf16'\nkv_dtype = 'f16'\n"), HasSubstr("two names"));
}

TEST(SpecFile, WrongTypesAndRangesAreRefused) {
  EXPECT_THAT(ErrorOf("model = 3"), HasSubstr("model must be a string"));
  EXPECT_THAT(ErrorOf("block_tokens = '16'"), HasSubstr("block_tokens must be an integer"));
  EXPECT_THAT(ErrorOf("block_tokens = 1.5"), HasSubstr("must be an integer"));
  EXPECT_THAT(ErrorOf("block_tokens = -1"), HasSubstr("is negative"));
  EXPECT_THAT(ErrorOf("slices = 4294967296"), HasSubstr("above 4294967295"));
  EXPECT_THAT(ErrorOf("slice_bytes = '8GiB'"), HasSubstr("above 4294967295"));
  EXPECT_THAT(ErrorOf("slice_bytes = 'much'"), HasSubstr("slice_bytes"));
  EXPECT_THAT(ErrorOf("[model]\nx = 1"), HasSubstr("model must be a string"));
}

TEST(SpecFile, BrokenTomlAndAMissingFileAreRefused) {
  EXPECT_THAT(ErrorOf("model = \n"), HasSubstr(":1: "));
  EXPECT_TRUE(absl::IsInvalidArgument(ReadSpecFile("/no/such/spec.toml").status()));
}

absl::StatusOr<v1::NamespaceSpec> FromSliceBytes(const std::string& text) {
  SpecFlags flags;
  flags.slice_bytes = text;
  return SpecFromFlags(flags);
}

TEST(SpecFromFlags, TakesSizesWithAndWithoutUnit) {
  EXPECT_EQ(FromSliceBytes("1MiB")->slice_bytes(), 1u << 20);
  EXPECT_EQ(FromSliceBytes("4096")->slice_bytes(), 4096u);
  EXPECT_THAT(FromSliceBytes("4096KB").status().ToString(), HasSubstr("--slice-bytes"));
}

}  // namespace
}  // namespace kvstore::kvctl
