#include "engine_adapter/tokenizer/byte_level.h"

#include <array>

namespace kvstore::engine {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

bool StandsForItself(int byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

// Character -> byte, for characters below U+0100 + 68; -1 where there is none.
std::array<int, 0x144> BuildAlphabet() {
  std::array<int, 0x144> byte_of{};
  byte_of.fill(-1);
  size_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    byte_of[StandsForItself(byte) ? static_cast<size_t>(byte) : next++] = byte;
  }
  return byte_of;
}

// What one step over possibly ill-formed UTF-8 found.
struct Step {
  size_t num_bytes;    // of the character, or of the maximal ill-formed part
  bool is_valid;       // a whole character
  bool is_incomplete;  // ill-formed only because the text ends
};

Step StepUtf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {1, true, false};
  size_t length = 0;
  unsigned char low = 0x80;  // bounds of the second byte: no overlong forms, surrogates, > U+10FFFF
  unsigned char high = 0xbf;
  if (lead >= 0xc2 && lead <= 0xdf) {
    length = 2;
  } else if (lead >= 0xe0 && lead <= 0xef) {
    length = 3;
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    length = 4;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
  } else {
    return {1, false, false};
  }
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {i, false, true};
    if (byte(i) < low || byte(i) > high) return {i, false, false};
    low = 0x80;
    high = 0xbf;
  }
  return {length, true, false};
}

}  // namespace

std::optional<std::string> BytesOfByteLevelText(std::string_view text) {
  static const std::array<int, 0x144> kByteOf = BuildAlphabet();
  if (ValidUtf8Prefix(text) != text.size()) return std::nullopt;
  std::string bytes;
  while (!text.empty()) {
    const char32_t character = TakeCharacter(text);
    if (character >= kByteOf.size() || kByteOf[character] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kByteOf[character]));
  }
  return bytes;
}

size_t ValidUtf8Prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const Step step = StepUtf8(text.substr(at));
    if (!step.is_valid) break;
    at += step.num_bytes;
  }
  return at;
}

size_t AppendLossyUtf8(std::string_view text, std::string& out) {
  while (!text.empty()) {
    const Step step = StepUtf8(text);
    if (step.is_incomplete) return text.size();
    out += step.is_valid ? text.substr(0, step.num_bytes) : kReplacement;
    text.remove_prefix(step.num_bytes);
  }
  return 0;
}

char32_t TakeCharacter(std::string_view& text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  const size_t length = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  char32_t character = length == 1 ? lead : lead & (0xffu >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    character = (character << 6) | (static_cast<unsigned char>(text[i]) & 0x3f);
  }
  text.remove_prefix(length);
  return character;
}

}  // namespace kvstore::engine
