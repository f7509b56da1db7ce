// Tokenizer turns text into token ids and back, as the Hugging Face `tokenizers` library does with
// the same tokenizer.json.
//
// Known: model BPE over the byte-level alphabet; pre-tokenizers ByteLevel, Digits, Split (isolated)
// and Sequence of them; normalizers none and NFC; added tokens; post-processors none, ByteLevel and
// a TemplateProcessing that puts special tokens around the text. That covers GPT-2, SmolLM2, Llama
// 3, Qwen2, Qwen2.5 and Qwen3. Anything else is refused when the file is read: never a wrong
// tokenization.
//
// Threads: immutable after it is read; all calls may run on any thread.
// Trust:   tokenizer.json and texts are untrusted; sizes are bounded.
#pragma once

#include <absl/status/statusor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvstore::engine {

// Whether Encode() puts the tokens of the post-processor (begin of text) around the text. A
// rendered chat has its own.
enum class AddSpecialTokens { kNo, kYes };
enum class SkipSpecialTokens { kNo, kYes };

class Tokenizer {
 public:
  static constexpr size_t kFileBytesMax = 64 << 20;
  static constexpr size_t kTextBytesMax = 64 << 20;
  static constexpr uint32_t kTokensMax = 1 << 21;

  // Reads `model_dir`/tokenizer.json.
  // Errors: NotFound; InvalidArgument, a broken file or a feature we do not know, named.
  static absl::StatusOr<Tokenizer> Read(const std::filesystem::path& model_dir);

  // The same from text. `file_name` only appears in messages.
  static absl::StatusOr<Tokenizer> Parse(std::string_view json_text, std::string_view file_name);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Special tokens written out in `text` ("<|im_end|>") become those tokens, as in the reference:
  // who renders untrusted text into a prompt must know that. A byte that the vocabulary lacks is
  // dropped, as in the reference. Errors: InvalidArgument, not valid UTF-8 (the message has the
  // offset) or longer than kTextBytesMax.
  absl::StatusOr<std::vector<uint32_t>> Encode(std::string_view text, AddSpecialTokens add) const;

  // The text of `tokens`, always valid UTF-8: bytes that form no character become U+FFFD.
  // Errors: InvalidArgument, an id that the vocabulary lacks.
  absl::StatusOr<std::string> Decode(std::span<const uint32_t> tokens,
                                     SkipSpecialTokens skip) const;

  // The bytes of one token, which may be a part of a character. Nullopt if there is no such token.
  std::optional<std::string_view> TokenBytes(uint32_t token) const;

  bool is_special(uint32_t token) const;

  // The id of a token by its exact content ("<|im_end|>"); added tokens only.
  std::optional<uint32_t> AddedToken(std::string_view content) const;

  uint32_t num_tokens() const;  // highest id + 1

 private:
  friend class TokenizerReader;
  struct State;

  Tokenizer();

  std::unique_ptr<State> state_;
};

// Decodes a growing list of tokens into text that is valid UTF-8 at every step: a character that is
// split over tokens appears when it is whole. The pieces joined equal Tokenizer::Decode() of all
// tokens.
//
// Threads: externally synchronised. `tokenizer` outlives it.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, SkipSpecialTokens skip)
      : tokenizer_(tokenizer), skip_(skip) {}

  // Text that became certain with `token`; often empty.
  // Errors: InvalidArgument, an id that the vocabulary lacks; nothing changes then.
  absl::StatusOr<std::string> Push(uint32_t token);

  // What is left at the end: U+FFFD if a character never became whole, else nothing.
  std::string Finish();

 private:
  const Tokenizer& tokenizer_;
  const SkipSpecialTokens skip_;
  std::string pending_;  // at most 3 bytes
};

}  // namespace kvstore::engine
