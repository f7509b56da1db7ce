#include "engine_adapter/tokenizer/pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace kvstore::engine {
namespace {

using ::testing::ElementsAre;

std::vector<std::string_view> SplitBy(const char* pattern, std::string_view text) {
  const auto compiled = Pattern::Compile(pattern);
  EXPECT_TRUE(compiled.ok()) << compiled.status();
  std::vector<std::string_view> pieces;
  EXPECT_TRUE(compiled->Split(text, pieces).ok());
  return pieces;
}

TEST(Pattern, KeepsMatchesAndGaps) {
  EXPECT_THAT(SplitBy("[0-9]+", "ab12c3"), ElementsAre("ab", "12", "c", "3"));
  EXPECT_THAT(SplitBy("x", "ab"), ElementsAre("ab"));
  EXPECT_TRUE(SplitBy("x", "").empty());
}

TEST(Pattern, AnEmptyMatchSplitsWithoutLosingText) {
  EXPECT_THAT(SplitBy("(?=b)", "aébb"), ElementsAre("aé", "b", "b"));
}

// Unicode White_Space has U+0085 and not U+180E; PCRE2's own \s has U+180E.
TEST(Pattern, WhiteSpaceIsTheUnicodeProperty) {
  EXPECT_THAT(SplitBy("\\s", "a\u0085b\u180ec"), ElementsAre("a", "\u0085", "b\u180ec"));
  EXPECT_THAT(SplitBy("[^\\s]+", " \u180e\u3000"), ElementsAre(" ", "\u180e", "\u3000"));
  EXPECT_THAT(SplitBy("\\S+", " \u180e "), ElementsAre(" ", "\u180e", " "));
}

TEST(Pattern, LiteralMatchesItself) {
  const auto compiled = Pattern::CompileLiteral("a.\\E(é");
  ASSERT_TRUE(compiled.ok()) << compiled.status();
  std::vector<std::string_view> pieces;
  ASSERT_TRUE(compiled->Split("xa.\\E(éy", pieces).ok());
  EXPECT_THAT(pieces, ElementsAre("x", "a.\\E(é", "y"));
}

TEST(Pattern, RefusesWhatTheDialectsReadDifferently) {
  for (const char* pattern :
       {"", "a\\", "\\w", "\\d", "\\b", "\\h", "\\C", "[\\S]", "[a[b]]", "[a&&b]", "^a", "a$",
        "(?m)a", "(*UTF)a", "a{1,3}+", "\\p{L", "(", "\\p{Nonsense}"}) {
    EXPECT_EQ(Pattern::Compile(pattern).status().code(), absl::StatusCode::kInvalidArgument)
        << pattern;
  }
  EXPECT_FALSE(Pattern::Compile(std::string(9000, 'a')).ok());
}

// A pattern from a hostile file ends in an error, not in a hang.
TEST(Pattern, BacktrackingIsBounded) {
  const auto compiled = Pattern::Compile("(?:a+a+)+[bc]");
  ASSERT_TRUE(compiled.ok());
  std::vector<std::string_view> pieces;
  EXPECT_EQ(compiled->Split(std::string(200, 'a'), pieces).code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace kvstore::engine
