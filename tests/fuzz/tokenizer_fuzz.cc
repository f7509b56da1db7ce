// tokenizer.json of a model from the internet, and a text for it.
//
//   input: JSON text, zero byte, text
//
// Promises: tokens of a text are in the vocabulary; what decodes is UTF-8; decoding in one go and
// token by token agree, and agree with the text where the vocabulary has every byte; pieces of a
// pattern cover the text.
#include "engine_adapter/tokenizer/byte_level.h"
#include "engine_adapter/tokenizer/pattern.h"
#include "engine_adapter/tokenizer/tokenizer.h"
#include "tests/fuzz/fuzz_input.h"

namespace kvstore::engine {
namespace {

// False, too, where looking would take long: ids may be far apart.
bool HasEveryByte(const Tokenizer& tokenizer, std::string_view text) {
  if (tokenizer.num_tokens() > 4096) return false;
  for (const char byte : text) {
    bool is_there = false;
    for (uint32_t token = 0; token < tokenizer.num_tokens() && !is_there; ++token)
      is_there = tokenizer.TokenBytes(token) == std::string_view(&byte, 1);
    if (!is_there) return false;
  }
  return true;
}

// Whether nothing in the file rewrites text: no added tokens, no normalizer, no hidden key.
bool IsPlain(std::string_view json) {
  return json.find("added_tokens") == json.npos && json.find("normalizer") == json.npos &&
         json.find("\\u") == json.npos;
}

void CheckText(const Tokenizer& tokenizer, std::string_view json, std::string_view text) {
  const auto tokens = tokenizer.Encode(text, AddSpecialTokens::kNo);
  if (!tokens.ok()) return;
  REQUIRE(ValidUtf8Prefix(text) == text.size());
  REQUIRE(tokens->size() <= text.size());
  StreamDecoder stream(tokenizer, SkipSpecialTokens::kNo);
  std::string streamed, bytes;
  for (const uint32_t token : *tokens) {
    REQUIRE(tokenizer.TokenBytes(token).has_value());
    bytes += *tokenizer.TokenBytes(token);
    const auto piece = stream.Push(token);
    REQUIRE(piece.ok() && ValidUtf8Prefix(*piece) == piece->size());
    streamed += *piece;
  }
  streamed += stream.Finish();
  if (IsPlain(json) && HasEveryByte(tokenizer, text)) REQUIRE(bytes == text && streamed == text);
  const auto decoded = tokenizer.Decode(*tokens, SkipSpecialTokens::kNo);
  REQUIRE(decoded.ok() && *decoded == streamed && ValidUtf8Prefix(streamed) == streamed.size());
  const auto with_special = tokenizer.Encode(text, AddSpecialTokens::kYes);
  REQUIRE(with_special.ok() && with_special->size() >= tokens->size());
  for (const uint32_t token : *with_special) REQUIRE(token < tokenizer.num_tokens());
}

void CheckPattern(std::string_view pattern, std::string_view text) {
  if (ValidUtf8Prefix(text) != text.size()) return;
  for (const auto& compiled : {Pattern::Compile(pattern), Pattern::CompileLiteral(pattern)}) {
    std::vector<std::string_view> pieces;
    if (!compiled.ok() || !compiled->Split(text, pieces).ok()) continue;
    const char* at = text.data();
    for (const std::string_view piece : pieces) {
      REQUIRE(piece.data() == at && !piece.empty());
      at += piece.size();
    }
    REQUIRE(at == text.data() + text.size());
  }
}

}  // namespace
}  // namespace kvstore::engine

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace kvstore;
  using namespace kvstore::engine;
  fuzz::Input input(data, bytes);
  const std::string first = fuzz::Copy(input.TakeText());
  const std::string text = fuzz::Copy(input.TakeRest());
  if (!first.starts_with("{")) {
    CheckPattern(first, text);
    return 0;
  }
  const auto tokenizer = Tokenizer::Parse(first, "tokenizer.json");
  if (!tokenizer.ok()) {
    REQUIRE(absl::IsInvalidArgument(tokenizer.status()));
    return 0;
  }
  REQUIRE(tokenizer->num_tokens() <= Tokenizer::kTokensMax);
  CheckText(*tokenizer, first, text);
  // Whatever a model generates.
  std::vector<uint32_t> all;
  for (uint32_t token = 0; token < tokenizer->num_tokens() && token < 64; ++token) {
    if (tokenizer->TokenBytes(token).has_value()) all.push_back(token);
  }
  const auto decoded = tokenizer->Decode(all, SkipSpecialTokens::kYes);
  REQUIRE(decoded.ok() && ValidUtf8Prefix(*decoded) == decoded->size());
  REQUIRE(!tokenizer->Decode(std::vector{tokenizer->num_tokens()}, SkipSpecialTokens::kNo).ok());
  return 0;
}
