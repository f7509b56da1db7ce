#include "engine_adapter/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

namespace kvstore::engine {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

json ReadGolden(const std::string& name) {
  std::ifstream file(std::string(KVSTORE_GOLDEN_DIR) + "/tokenizer/" + name);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return json::parse(text);
}

// base.json with the fields of one variant put in.
json TokenizerOf(const json& base, const json& variant) {
  json file = base;
  for (const auto& [key, value] : variant["replaced"].items()) {
    if (key != "model_patch") file[key] = value;
  }
  if (variant["replaced"].contains("model_patch")) {
    const json& patch = variant["replaced"]["model_patch"];
    json& merges = file["model"]["merges"];
    merges.erase(merges.begin() + patch["merges_kept"].get<int>(), merges.end());
    file["model"]["ignore_merges"] = patch["ignore_merges"];
    json& vocab = file["model"]["vocab"];
    if (patch["lacks_byte_4"] == true) {
      vocab["\u4e00"] = vocab["\u0104"];
      vocab.erase("\u0104");
    }
  }
  return file;
}

json BaseWithByteLevel() {
  json file = ReadGolden("base.json");
  file["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  return file;
}

TEST(Tokenizer, AgreesWithTheReferenceOnGoldenVectors) {
  const json base = ReadGolden("base.json");
  size_t num_cases = 0;
  for (const json& variant : ReadGolden("vectors.json")) {
    SCOPED_TRACE(variant["name"].get<std::string>());
    const auto tokenizer = Tokenizer::Parse(TokenizerOf(base, variant).dump(), "t.json");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    for (const json& golden : variant["cases"]) {
      const auto text = golden[0].get<std::string>();
      const auto ids = tokenizer->Encode(text, AddSpecialTokens::kYes);
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_EQ(*ids, golden[1].get<std::vector<uint32_t>>()) << text;
      EXPECT_EQ(*tokenizer->Decode(*ids, SkipSpecialTokens::kNo),
                golden[golden.size() == 3 ? 2 : 0].get<std::string>());
      ++num_cases;
    }
  }
  EXPECT_GT(num_cases, 300u);
}

TEST(Tokenizer, AddsTheBeginOnlyWhenAsked) {
  const json base = ReadGolden("base.json");
  for (const json& variant : ReadGolden("vectors.json")) {
    if (variant["name"] != "llama3") continue;
    const auto tokenizer = Tokenizer::Parse(TokenizerOf(base, variant).dump(), "t.json");
    const uint32_t begin = *tokenizer->AddedToken("<|endoftext|>");
    EXPECT_EQ(tokenizer->Encode("a", AddSpecialTokens::kYes)->front(), begin);
    EXPECT_EQ(tokenizer->Encode("a", AddSpecialTokens::kNo)->size(), 1u);
  }
}

TEST(Tokenizer, RefusesTextThatIsNotUtf8WithTheOffset) {
  const auto tokenizer = Tokenizer::Parse(BaseWithByteLevel().dump(), "t.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  for (const char* text :
       {"ab\xff", "ab\xc0\xaf", "ab\xed\xa0\x80", "ab\xf4\x90\x80\x80", "ab\xe2\x82"}) {
    const auto ids = tokenizer->Encode(text, AddSpecialTokens::kNo);
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(ids.status().ToString(), HasSubstr("offset 2"));
  }
}

TEST(Tokenizer, RefusesIdsOutsideTheVocabulary) {
  const auto tokenizer = Tokenizer::Parse(BaseWithByteLevel().dump(), "t.json");
  const uint32_t outside[] = {tokenizer->num_tokens()};
  EXPECT_EQ(tokenizer->Decode(outside, SkipSpecialTokens::kNo).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(tokenizer->TokenBytes(tokenizer->num_tokens()).has_value());
}

TEST(Tokenizer, SkipsSpecialTokensWhenAsked) {
  const auto tokenizer = Tokenizer::Parse(BaseWithByteLevel().dump(), "t.json");
  const auto ids = tokenizer->Encode("<|im_start|>hi<|im_end|>", AddSpecialTokens::kNo);
  EXPECT_EQ(*tokenizer->Decode(*ids, SkipSpecialTokens::kYes), "hi");
  EXPECT_EQ(*tokenizer->Decode(*ids, SkipSpecialTokens::kNo), "<|im_start|>hi<|im_end|>");
}

TEST(StreamDecoder, ShowsACharacterOnlyWhenItIsWhole) {
  json file = BaseWithByteLevel();
  file["model"]["merges"] = json::array();  // one token a byte
  const auto tokenizer = Tokenizer::Parse(file.dump(), "t.json");
  const std::string text = "a\xF0\x9F\x98\x80z";
  const auto ids = *tokenizer->Encode(text, AddSpecialTokens::kNo);
  ASSERT_EQ(ids.size(), text.size());
  StreamDecoder decoder(*tokenizer, SkipSpecialTokens::kNo);
  std::vector<std::string> pieces;
  for (const uint32_t id : ids) pieces.push_back(*decoder.Push(id));
  EXPECT_THAT(pieces, ElementsAre("a", "", "", "", "\xF0\x9F\x98\x80", "z"));
  EXPECT_EQ(decoder.Finish(), "");
}

TEST(StreamDecoder, ReplacesAPartThatNeverBecomesACharacter) {
  json file = BaseWithByteLevel();
  file["model"]["merges"] = json::array();
  const auto tokenizer = Tokenizer::Parse(file.dump(), "t.json");
  const auto ids = *tokenizer->Encode("\xF0\x9F\x98\x80z", AddSpecialTokens::kNo);
  StreamDecoder decoder(*tokenizer, SkipSpecialTokens::kNo);
  EXPECT_EQ(*decoder.Push(ids[0]), "");
  EXPECT_EQ(*decoder.Push(ids[1]), "");
  EXPECT_EQ(*decoder.Push(ids[4]), "\xEF\xBF\xBDz");
  EXPECT_EQ(*decoder.Push(ids[0]), "");
  EXPECT_EQ(decoder.Finish(), "\xEF\xBF\xBD");
}

// A long run without a split must not cost its square.
TEST(Tokenizer, EncodesAMegabyteOfOneLetterInTime) {
  const auto tokenizer = Tokenizer::Parse(BaseWithByteLevel().dump(), "t.json");
  const std::string text(1 << 20, 'e');
  const auto ids = tokenizer->Encode(text, AddSpecialTokens::kNo);
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(*tokenizer->Decode(*ids, SkipSpecialTokens::kNo), text);
}

struct Unsupported {
  const char* name;
  const char* patch;  // merged into the file, RFC 7396
  const char* message;
};

class TokenizerRefuses : public ::testing::TestWithParam<Unsupported> {};

TEST_P(TokenizerRefuses, NamingTheFeature) {
  json file = BaseWithByteLevel();
  file.merge_patch(json::parse(GetParam().patch));
  const auto tokenizer = Tokenizer::Parse(file.dump(), "dir/tokenizer.json");
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(tokenizer.status().ToString(), HasSubstr("dir/tokenizer.json: "));
  EXPECT_THAT(tokenizer.status().ToString(), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    Features, TokenizerRefuses,
    ::testing::Values(
        Unsupported{"model", R"({"model":{"type":"Unigram"}})", "model.type"},
        Unsupported{"no_model", R"({"model":null})", "model.type"},
        Unsupported{"dropout", R"({"model":{"dropout":0.1}})", "model.dropout"},
        Unsupported{"suffix", R"({"model":{"end_of_word_suffix":"</w>"}})", "end_of_word_suffix"},
        Unsupported{"byte_fallback", R"({"model":{"byte_fallback":true}})", "byte_fallback"},
        Unsupported{"id_negative", R"({"model":{"vocab":{"zz":-1}}})", "the id of a token"},
        Unsupported{"id_huge", R"({"model":{"vocab":{"zz":4294967295}}})", "the id of a token"},
        Unsupported{"id_twice", R"({"model":{"vocab":{"zz":5}}})", "two tokens have the id 5"},
        Unsupported{"merge_broken", R"({"model":{"merges":["ab"]}})", "merge 0"},
        Unsupported{"merge_number", R"({"model":{"merges":[5]}})", "merge 0"},
        Unsupported{"merge_unknown", R"({"model":{"merges":["z q"]}})", "merge 0"},
        Unsupported{"merges_object", R"({"model":{"merges":{"a":"b"}}})", "model.merges"},
        Unsupported{"normalizer", R"({"normalizer":{"type":"Lowercase"}})", "only NFC"},
        Unsupported{"normalizer_nested",
                    R"({"normalizer":{"type":"Sequence","normalizers":[{"type":"NFC"},)"
                    R"({"type":"Replace"}]}})",
                    "only NFC"},
        Unsupported{"no_pre_tokenizer", R"({"pre_tokenizer":null})", "byte-level"},
        Unsupported{"pre_tokenizer", R"({"pre_tokenizer":{"type":"Metaspace"}})", "pre_tokenizer"},
        Unsupported{"prefix_space", R"({"pre_tokenizer":{"add_prefix_space":true}})",
                    "add_prefix_space"},
        Unsupported{"after_byte_level",
                    R"({"pre_tokenizer":{"type":"Sequence","pretokenizers":)"
                    R"([{"type":"ByteLevel"},{"type":"Digits"}]}})",
                    "last step"},
        Unsupported{"split_removed",
                    R"({"pre_tokenizer":{"type":"Split","pattern":{"Regex":"a"},)"
                    R"("behavior":"Removed"}})",
                    "Isolated"},
        Unsupported{"split_escape",
                    R"({"pre_tokenizer":{"type":"Split","pattern":{"Regex":"\\w+"},)"
                    R"("behavior":"Isolated"}})",
                    "escape \\w"},
        Unsupported{"split_broken",
                    R"({"pre_tokenizer":{"type":"Split","pattern":{"Regex":"(a"},)"
                    R"("behavior":"Isolated"}})",
                    "pattern"},
        Unsupported{"decoder", R"({"decoder":{"type":"WordPiece"}})", "decoder"},
        Unsupported{"post_processor", R"({"post_processor":{"type":"BertProcessing"}})",
                    "post_processor"},
        Unsupported{"added_lstrip",
                    R"({"added_tokens":[{"id":900,"content":"<m>","lstrip":true}]})", "lstrip"},
        Unsupported{"added_empty", R"({"added_tokens":[{"id":900,"content":""}]})", "no content"},
        Unsupported{"added_conflict", R"({"added_tokens":[{"id":900,"content":"a"}]})",
                    "has id 900, but the reference numbers it"},
        Unsupported{"added_gap", R"({"added_tokens":[{"id":601,"content":"<m>"}]})",
                    "has id 601, but the reference numbers it 600"},
        Unsupported{"added_twice",
                    R"({"added_tokens":[{"id":600,"content":"<m>"},{"id":601,"content":"<m>"}]})",
                    "there twice"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(Tokenizer, RefusesFilesThatAreNoTokenizer) {
  for (const char* text : {"", "[]", "{}", "{\"model\":[]}", "\xff"}) {
    EXPECT_EQ(Tokenizer::Parse(text, "f").status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(Tokenizer::Read("/nonexistent").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace kvstore::engine
