#include "engine_adapter/tokenizer/tokenizer.h"

#include <absl/status/status.h>
#include <absl/strings/str_cat.h>

#include <algorithm>

#include "engine_adapter/tokenizer/byte_level.h"
#include "engine_adapter/tokenizer/normalize.h"
#include "engine_adapter/tokenizer/tokenizer_state.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"

namespace kvstore::engine {

void AddedTokenFinder::Add(std::string content, uint32_t token) {
  auto& known = by_first_byte_[static_cast<unsigned char>(content[0])];
  const auto shorter = std::find_if(known.begin(), known.end(), [&](const Known& other) {
    return other.content.size() < content.size();
  });
  known.insert(shorter, {std::move(content), token});
}

std::vector<AddedTokenFinder::Piece> AddedTokenFinder::Split(std::string_view text) const {
  std::vector<Piece> pieces;
  size_t begin = 0;  // of the ordinary text in progress
  size_t at = 0;
  while (at < text.size()) {
    const auto& known = by_first_byte_[static_cast<unsigned char>(text[at])];
    const std::string_view rest = text.substr(at);
    const auto found = std::find_if(known.begin(), known.end(), [&](const Known& token) {
      return rest.starts_with(token.content);
    });
    if (found == known.end()) {
      ++at;
      continue;
    }
    if (begin < at) pieces.push_back({text.substr(begin, at - begin), std::nullopt});
    pieces.push_back({rest.substr(0, found->content.size()), found->token});
    at += found->content.size();
    begin = at;
  }
  if (begin < text.size()) pieces.push_back({text.substr(begin), std::nullopt});
  return pieces;
}

namespace {

// Splits by each pattern in turn, then encodes every piece.
absl::Status EncodeOrdinary(const std::vector<Pattern>& splits, const BytePairEncoder& encoder,
                            std::string_view text, std::vector<uint32_t>& tokens) {
  std::vector<std::string_view> pieces = {text};
  for (const Pattern& split : splits) {
    std::vector<std::string_view> finer;
    for (const std::string_view piece : pieces) RETURN_IF_ERROR(split.Split(piece, finer));
    pieces = std::move(finer);
  }
  for (const std::string_view piece : pieces) encoder.Encode(piece, tokens);
  return absl::OkStatus();
}

}  // namespace

Tokenizer::Tokenizer() : state_(std::make_unique<State>()) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::vector<uint32_t>> Tokenizer::Encode(std::string_view text,
                                                        AddSpecialTokens add) const {
  if (text.size() > kTextBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("the text has ", text.size(), " bytes; at most ",
                                                   kTextBytesMax, " are allowed"));
  }
  if (const size_t valid = ValidUtf8Prefix(text); valid != text.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text is not valid UTF-8 at byte offset ", valid));
  }
  std::vector<uint32_t> tokens;
  if (add == AddSpecialTokens::kYes) tokens = state_->before;
  for (const auto& raw : state_->added_raw.Split(text)) {
    if (raw.token.has_value()) {
      tokens.push_back(*raw.token);
      continue;
    }
    std::string normalized;
    std::string_view ordinary = raw.text;
    if (state_->normalizes_nfc) {
      ASSIGN_OR_RETURN(normalized, NormalizeNfc(raw.text));
      ordinary = normalized;
    }
    for (const auto& piece : state_->added_normalized.Split(ordinary)) {
      if (piece.token.has_value()) {
        tokens.push_back(*piece.token);
      } else {
        RETURN_IF_ERROR(EncodeOrdinary(state_->splits, *state_->encoder, piece.text, tokens));
      }
    }
  }
  if (add == AddSpecialTokens::kYes) {
    tokens.insert(tokens.end(), state_->after.begin(), state_->after.end());
  }
  return tokens;
}

absl::StatusOr<std::string> Tokenizer::Decode(std::span<const uint32_t> tokens,
                                              SkipSpecialTokens skip) const {
  StreamDecoder decoder(*this, skip);
  std::string text;
  for (const uint32_t token : tokens) {
    ASSIGN_OR_RETURN(const std::string piece, decoder.Push(token));
    text += piece;
  }
  return text + decoder.Finish();
}

std::optional<std::string_view> Tokenizer::TokenBytes(uint32_t token) const {
  if (token >= num_tokens() || !state_->tokens[token].exists) return std::nullopt;
  return state_->tokens[token].bytes;
}

bool Tokenizer::is_special(uint32_t token) const {
  return token < num_tokens() && state_->tokens[token].is_special;
}

std::optional<uint32_t> Tokenizer::AddedToken(std::string_view content) const {
  const auto it = state_->added_ids.find(AbslView(content));
  if (it == state_->added_ids.end()) return std::nullopt;
  return it->second;
}

uint32_t Tokenizer::num_tokens() const { return static_cast<uint32_t>(state_->tokens.size()); }

absl::StatusOr<std::string> StreamDecoder::Push(uint32_t token) {
  const std::optional<std::string_view> bytes = tokenizer_.TokenBytes(token);
  if (!bytes.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("token ", token, " is not in the tokenizer's vocabulary"));
  }
  if (skip_ == SkipSpecialTokens::kYes && tokenizer_.is_special(token)) return std::string();
  pending_ += *bytes;
  std::string text;
  const size_t left = AppendLossyUtf8(pending_, text);
  pending_.erase(0, pending_.size() - left);
  return text;
}

std::string StreamDecoder::Finish() {
  const std::string text = pending_.empty() ? "" : "\xEF\xBF\xBD";
  pending_.clear();
  return text;
}

}  // namespace kvstore::engine
