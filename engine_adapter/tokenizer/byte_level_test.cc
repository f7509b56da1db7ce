#include "engine_adapter/tokenizer/byte_level.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvstore::engine {
namespace {

TEST(ByteLevel, KnowsTheAlphabet) {
  EXPECT_EQ(BytesOfByteLevelText("a!~"), "a!~");
  EXPECT_EQ(BytesOfByteLevelText("\u0100"), std::string(1, '\0'));
  EXPECT_EQ(BytesOfByteLevelText("\u0120\u010a\u0121"), " \n\x7f");
  EXPECT_EQ(BytesOfByteLevelText("\u00a1\u00ff\u0143"), "\xa1\xff\xad");
}

TEST(ByteLevel, RefusesCharactersOutsideTheAlphabet) {
  for (const char* text : {" ", "a b", "\u0144", "\u00ad", "\u4e2d", "\xff"}) {
    EXPECT_FALSE(BytesOfByteLevelText(text).has_value()) << text;
  }
}

// The table of well-formed sequences in the Unicode standard (3-7), at its edges.
TEST(Utf8, AcceptsExactlyWhatIsWellFormed) {
  for (const char* text :
       {"\x7f", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
        "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_EQ(ValidUtf8Prefix(text), std::string_view(text).size()) << text;
  }
  for (const char* text :
       {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xc2", "\xe2\x82", "\xc2\x41"}) {
    EXPECT_EQ(ValidUtf8Prefix(text), 0u);
  }
}

TEST(Utf8, ReplacesMaximalIllFormedPartsAndKeepsAnOpenEnd) {
  std::string out;
  // Unicode standard 3.9, table 3-8 and 3-9.
  EXPECT_EQ(AppendLossyUtf8("a\xf0\x80\x80\x41\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", out), 0u);
  EXPECT_EQ(out, "a\uFFFD\uFFFD\uFFFDA\uFFFD\uFFFD\uFFFD\uFFFDA");
  out.clear();
  EXPECT_EQ(AppendLossyUtf8("b\xf0\x9f\x98", out), 3u);
  EXPECT_EQ(out, "b");
}

TEST(Utf8, TakesCharactersOfEveryLength) {
  std::string_view text = "a\u00e9\u4e2d\U0001f600";
  EXPECT_EQ(TakeCharacter(text), U'a');
  EXPECT_EQ(TakeCharacter(text), U'\u00e9');
  EXPECT_EQ(TakeCharacter(text), U'\u4e2d');
  EXPECT_EQ(TakeCharacter(text), U'\U0001f600');
  EXPECT_TRUE(text.empty());
}

}  // namespace
}  // namespace kvstore::engine
