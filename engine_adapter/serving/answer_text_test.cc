#include "engine_adapter/serving/answer_text.h"

#include <gtest/gtest.h>

#include <random>

#include "engine_adapter/serving/test_model.h"

namespace kvstore::engine {
namespace {

// Feeds bytes as tokens; returns the pieces joined by '|', and the rest of Finish() behind '.'.
std::string Pieces(const Tokenizer& tokenizer, const std::vector<std::string>& stops,
                   std::string_view bytes) {
  AnswerText text(tokenizer, stops);
  std::string pieces;
  for (const char byte : bytes) {
    pieces += text.Push(static_cast<unsigned char>(byte)) + "|";
    if (text.is_stopped()) return pieces;
  }
  return pieces + "." + text.Finish();
}

TEST(AnswerText, WithoutStopsTextComesAsItIsCertain) {
  EXPECT_EQ(Pieces(ByteTokenizer(), {}, "ab"), "a|b|.");
}

TEST(AnswerText, ACharacterComesWhole) {
  EXPECT_EQ(Pieces(ByteTokenizer(), {}, "a\xc3\xa4"), "a||\xc3\xa4|.");
  EXPECT_EQ(Pieces(ByteTokenizer(), {}, "a\xc3"), "a||.\xef\xbf\xbd");
}

TEST(AnswerText, NoPartOfAStopStringIsEverSent) {
  EXPECT_EQ(Pieces(ByteTokenizer(), {"stop"}, "a stop b"), "a| |||||");
}

TEST(AnswerText, WhatOnlyLookedLikeAStopStringIsSentWhenThatIsKnown) {
  EXPECT_EQ(Pieces(ByteTokenizer(), {"stop"}, "a sto"), "a| ||||.sto");
  EXPECT_EQ(Pieces(ByteTokenizer(), {"stop"}, "stob"), "|||stob|.");
  EXPECT_EQ(Pieces(ByteTokenizer(), {"aab"}, "aaab"), "||a||");
}

TEST(AnswerText, OfSeveralTheFirstCompleteOneEndsTheAnswer) {
  EXPECT_EQ(Pieces(ByteTokenizer(), {"abcd", "bc"}, "abcd"), "||a|");
  EXPECT_EQ(Pieces(ByteTokenizer(), {"bc", "abc"}, "xabc"), "x||||");
}

TEST(AnswerText, AStopStringMayHoldHalfOfAnothersCharacters) {
  // U+00E4 is c3 a4, U+00E5 is c3 a5.
  EXPECT_EQ(Pieces(ByteTokenizer(), {"\xc3\xa4"}, "\xc3\xa5\xc3\xa4"), "|\xc3\xa5|||");
}

// Against the plain definition: all text, cut before the first complete stop string.
TEST(AnswerText, RandomTextsEndWhereTheDefinitionSays) {
  const Tokenizer tokenizer = ByteTokenizer();
  std::mt19937 random(1);
  const auto word = [&random](size_t length) {
    std::string text;
    for (size_t i = 0; i < length; ++i) text += static_cast<char>('a' + random() % 2);
    return text;
  };
  for (int round = 0; round < 2000; ++round) {
    const std::vector<std::string> stops = {word(1 + random() % 5), word(1 + random() % 5)};
    const std::string all = word(12);
    std::string expected = all;
    for (size_t end = 1; end <= all.size() && expected == all; ++end) {
      const std::string head = all.substr(0, end);
      size_t longest = 0;
      for (const std::string& stop : stops) {
        if (head.ends_with(stop)) longest = std::max(longest, stop.size());
      }
      if (longest > 0) expected = head.substr(0, end - longest) + "!";
    }
    AnswerText text(tokenizer, stops);
    std::string sent;
    for (const char byte : all) sent += text.Push(static_cast<unsigned char>(byte));
    sent += text.Finish();
    if (text.is_stopped()) sent += "!";
    ASSERT_EQ(sent, expected) << all << " " << stops[0] << " " << stops[1];
  }
}

}  // namespace
}  // namespace kvstore::engine
