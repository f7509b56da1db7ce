#include "engine_adapter/llama/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "engine_adapter/llama/test_model_files.h"

namespace kvstore::engine {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<SafetensorsFile> OpenBytes(const TempFolder& folder, const std::string& bytes) {
  folder.Write("x.safetensors", bytes);
  return SafetensorsFile::Open(folder.path() / "x.safetensors");
}

TEST(Safetensors, TensorsAreViewsOfTheFileBytes) {
  TempFolder folder;
  std::string header = R"({"__metadata__":{"format":"pt"},)"
                       R"("a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
                       R"("b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const auto file = OpenBytes(folder, SafetensorsBytes(header, 16));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->tensors().size(), 2u);
  const TensorView* a = file->Find("a");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->dtype, DType::kBF16);
  EXPECT_EQ(a->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(a->num_elements(), 6);
  EXPECT_EQ(std::to_integer<int>(a->address[5]), 5);
  EXPECT_EQ(std::to_integer<int>(file->Find("b")->address[0]), 12);
  EXPECT_EQ(file->Find("c"), nullptr);
}

TEST(Safetensors, ViewsSurviveMovingTheFile) {
  TempFolder folder;
  auto file = OpenBytes(folder, SafetensorsOf({{"a", {4}}}));
  ASSERT_TRUE(file.ok());
  const TensorView view = *file->Find("a");
  SafetensorsFile moved = std::move(*file);
  EXPECT_EQ(moved.Find("a")->address, view.address);
  EXPECT_EQ(std::to_integer<int>(view.address[3]), 3);
}

struct BadHeader {
  const char* name;
  const char* header;
  size_t data_bytes;
  const char* message;
};

class SafetensorsHostile : public ::testing::TestWithParam<BadHeader> {};

TEST_P(SafetensorsHostile, IsRefusedWithTheReason) {
  TempFolder folder;
  std::string header = GetParam().header;
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const auto file = OpenBytes(folder, SafetensorsBytes(header, GetParam().data_bytes));
  EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(file.status().ToString(), HasSubstr(GetParam().message));
  EXPECT_THAT(file.status().ToString(), HasSubstr("x.safetensors"));
}

INSTANTIATE_TEST_SUITE_P(
    Headers, SafetensorsHostile,
    ::testing::Values(
        BadHeader{"not_json", "{\"a\":", 0, "not valid JSON"},
        BadHeader{"array", "[1,2]", 0, "not a JSON object"},
        BadHeader{"binary", "\x80\xff\x01", 0, "not valid JSON"},
        BadHeader{"duplicate_name",
                  R"({"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]},)"
                  R"("a":{"dtype":"BF16","shape":[1],"data_offsets":[2,4]}})",
                  4, "twice"},
        BadHeader{"no_shape", R"({"a":{"dtype":"BF16","data_offsets":[0,2]}})", 2, "needs dtype"},
        BadHeader{"not_an_object", R"({"a":7})", 2, "needs dtype"},
        BadHeader{"dtype_unknown", R"({"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})", 8,
                  "dtype is not one of"},
        BadHeader{"dtype_number", R"({"a":{"dtype":3,"shape":[1],"data_offsets":[0,8]}})", 8,
                  "dtype is not one of"},
        BadHeader{"past_the_end", R"({"a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}})", 7,
                  "leave the 7 bytes"},
        BadHeader{"begin_after_end", R"({"a":{"dtype":"BF16","shape":[1],"data_offsets":[4,2]}})",
                  8, "leave the"},
        BadHeader{"huge_offset",
                  R"({"a":{"dtype":"BF16","shape":[1],"data_offsets":[18446744073709551614,0]}})",
                  8, "leave the"},
        BadHeader{"negative_offset", R"({"a":{"dtype":"BF16","shape":[1],"data_offsets":[-2,0]}})",
                  8, "not [begin, end]"},
        BadHeader{"three_offsets", R"({"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2,4]}})",
                  8, "not [begin, end]"},
        BadHeader{"shape_too_small", R"({"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,4]}})",
                  4, "needs 2 bytes"},
        BadHeader{"shape_overflows",
                  R"({"a":{"dtype":"BF16","shape":[4294967296,4294967296],"data_offsets":[0,0]}})",
                  8, "too large"},
        BadHeader{"shape_wraps_to_fit",
                  R"({"a":{"dtype":"BF16","shape":[9223372036854775809],"data_offsets":[0,2]}})", 8,
                  "too large"},
        BadHeader{"zero_dimension", R"({"a":{"dtype":"BF16","shape":[0],"data_offsets":[0,0]}})", 8,
                  "not positive"},
        BadHeader{"negative_dimension",
                  R"({"a":{"dtype":"BF16","shape":[-1,-1],"data_offsets":[0,2]}})", 8,
                  "not positive"},
        BadHeader{"scalar", R"({"a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}})", 8,
                  "1 to 8 dimensions"},
        BadHeader{"misaligned", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})", 8,
                  "not aligned"},
        BadHeader{"overlap",
                  R"({"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},)"
                  R"("b":{"dtype":"BF16","shape":[2],"data_offsets":[2,6]}})",
                  6, "overlaps"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(Safetensors, RefusesAFileShorterThanItsHeader) {
  TempFolder folder;
  std::string bytes = SafetensorsOf({{"a", {4}}});
  EXPECT_THAT(OpenBytes(folder, "").status().ToString(), HasSubstr("too short"));
  EXPECT_THAT(OpenBytes(folder, bytes.substr(0, 7)).status().ToString(), HasSubstr("too short"));
  EXPECT_THAT(OpenBytes(folder, bytes.substr(0, 20)).status().ToString(),
              HasSubstr("header claims"));
  const std::string huge = std::string(8, '\xff') + "{}";
  EXPECT_THAT(OpenBytes(folder, huge).status().ToString(), HasSubstr("header claims"));
}

// Every cut of a good file is refused, without a crash.
TEST(Safetensors, RefusesEveryTruncation) {
  TempFolder folder;
  const std::string bytes = SafetensorsOf(TinyTensors());
  ASSERT_TRUE(OpenBytes(folder, bytes).ok());
  for (size_t keep = 0; keep < bytes.size(); keep += 13) {
    EXPECT_FALSE(OpenBytes(folder, bytes.substr(0, keep)).ok()) << keep;
  }
}

TEST(Safetensors, RefusesFoldersAndMissingFiles) {
  TempFolder folder;
  EXPECT_EQ(SafetensorsFile::Open(folder.path()).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SafetensorsFile::Open(folder.path() / "none").status().code(),
            absl::StatusCode::kNotFound);
}

TEST(CopyAsFloat, WidensEveryHalfExactly) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const TensorView view{DType::kF16, {1}, reinterpret_cast<const std::byte*>(&half), 2};
    float out = -1;
    CopyAsFloat(view, 0, {&out, 1});
    const int exponent = (half >> 10) & 31;
    const double fraction = half & 1023;
    const double sign = (half & 0x8000) != 0 ? -1.0 : 1.0;
    if (exponent == 31 && fraction != 0) {
      EXPECT_TRUE(std::isnan(out));
    } else if (exponent == 31) {
      EXPECT_EQ(out, sign * std::numeric_limits<float>::infinity());
    } else if (exponent == 0) {
      EXPECT_EQ(out, sign * std::ldexp(fraction, -24));
    } else {
      EXPECT_EQ(out, sign * std::ldexp(1024 + fraction, exponent - 25));
    }
    EXPECT_EQ(std::signbit(out), sign < 0);
  }
}

TEST(CopyAsFloat, StartsAtTheElementAsked) {
  const uint16_t brain[] = {0x3f80, 0x4000, 0xc040};  // 1, 2, -3
  const TensorView view{DType::kBF16, {3}, reinterpret_cast<const std::byte*>(brain), 6};
  float out[2];
  CopyAsFloat(view, 1, out);
  EXPECT_EQ(out[0], 2.0f);
  EXPECT_EQ(out[1], -3.0f);
  const float wide[] = {0.1f, 0.2f};
  const TensorView floats{DType::kF32, {2}, reinterpret_cast<const std::byte*>(wide), 8};
  CopyAsFloat(floats, 1, {out, 1});
  EXPECT_EQ(out[0], 0.2f);
}

}  // namespace
}  // namespace kvstore::engine
