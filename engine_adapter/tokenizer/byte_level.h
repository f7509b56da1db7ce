// The byte-level alphabet of GPT-2 tokenizers, and UTF-8 as their files and texts use it.
//
// tokenizer.json writes bytes as printable characters: a byte that is a printable, non-blank
// Latin-1 character stands for itself, the other 68 take the characters from U+0100 on, in order (a
// space becomes U+0120).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace kvstore::engine {

// The bytes that a token of tokenizer.json stands for; nullopt if a character is not of the
// alphabet (or the text is not UTF-8).
std::optional<std::string> BytesOfByteLevelText(std::string_view text);

// Length of the longest prefix of `text` that is valid UTF-8 (no surrogates, nothing above
// U+10FFFF, no overlong form).
size_t ValidUtf8Prefix(std::string_view text);

// Appends `text` to `out` with each maximal ill-formed part replaced by U+FFFD, as Rust's
// from_utf8_lossy and WHATWG do. Returns how many bytes at the end were left out, because they may
// yet become a character (0 to 3).
size_t AppendLossyUtf8(std::string_view text, std::string& out);

// Decodes the character at the start of `text`. Requires: text is not empty and starts with a valid
// character. Advances `text` over it.
char32_t TakeCharacter(std::string_view& text);

}  // namespace kvstore::engine
