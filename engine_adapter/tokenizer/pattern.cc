#include "engine_adapter/tokenizer/pattern.h"

#include <absl/status/status.h>
#include <absl/strings/str_cat.h>

#include <string>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"

namespace kvstore::engine {
namespace {

// The White_Space property (Unicode PropList), as the inside of a character class.
constexpr std::string_view kWhiteSpace =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"
    "\\x{205f}\\x{3000}";

// Letters after a backslash that mean the same in both dialects.
constexpr std::string_view kCommonEscapes = "pPnrtf";

absl::Status BadPattern(std::string_view pattern, std::string_view problem) {
  return absl::InvalidArgumentError(
      absl::StrCat("pattern \"", AbslView(pattern.substr(0, 200)), "\": ", AbslView(problem)));
}

// Groups that mean the same in both dialects; inline flags such as (?m) do not.
constexpr std::string_view kCommonGroups[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};

bool IsCommonGroup(std::string_view rest) {
  if (!rest.starts_with("(?")) return !rest.starts_with("(*");
  for (const std::string_view group : kCommonGroups) {
    if (rest.starts_with(group)) return true;
  }
  return false;
}

bool IsAlphanumeric(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// Rewrites \s and \S; refuses what the dialects read differently.
absl::StatusOr<std::string> Rewrite(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c != '\\') {
      // Oniguruma nests classes and intersects them with &&; PCRE2 takes both as characters.
      if (in_class && (c == '[' || (c == '&' && pattern.substr(i).starts_with("&&")))) {
        return BadPattern(pattern, "nested character classes are not supported");
      }
      if (!in_class && (c == '^' || c == '$' || (c == '(' && !IsCommonGroup(pattern.substr(i))) ||
                        (c == '}' && pattern.substr(i).starts_with("}+")))) {
        return BadPattern(pattern, absl::StrCat("\"", AbslView(pattern.substr(i, 4)),
                                                "\" is not supported here"));
      }
      if (c == '[') in_class = true;
      if (c == ']') in_class = false;
      out.push_back(c);
      continue;
    }
    if (++i == pattern.size()) return BadPattern(pattern, "ends in a backslash");
    const char escaped = pattern[i];
    if (escaped == 's') {
      absl::StrAppend(&out, in_class ? "" : "[", AbslView(kWhiteSpace), in_class ? "" : "]");
    } else if (escaped == 'S' && !in_class) {
      absl::StrAppend(&out, "[^", AbslView(kWhiteSpace), "]");
    } else if (!IsAlphanumeric(escaped) || kCommonEscapes.find(escaped) != std::string_view::npos) {
      out.push_back('\\');
      out.push_back(escaped);
      if ((escaped == 'p' || escaped == 'P') && i + 1 < pattern.size() && pattern[i + 1] == '{') {
        const size_t end = pattern.find('}', i);
        if (end == std::string_view::npos) return BadPattern(pattern, "a property has no end");
        out += pattern.substr(i + 1, end - i);
        i = end;
      }
    } else {
      return BadPattern(pattern, absl::StrCat("the escape \\", std::string(1, escaped),
                                              in_class ? " in a class" : "", " is not supported"));
    }
  }
  return out;
}

}  // namespace

void Pattern::CodeDeleter::operator()(void* code) const {
  pcre2_code_free(static_cast<pcre2_code*>(code));
}

absl::StatusOr<Pattern> Pattern::Compile(std::string_view pattern) {
  if (pattern.empty() || pattern.size() > kPatternBytesMax) {
    return BadPattern(pattern, absl::StrCat("1 to ", kPatternBytesMax, " bytes are valid"));
  }
  ASSIGN_OR_RETURN(const std::string rewritten, Rewrite(pattern));
  return CompileRewritten(rewritten);
}

absl::StatusOr<Pattern> Pattern::CompileLiteral(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    // A backslash before a non-alphanumeric ASCII character always means the character.
    if (!IsAlphanumeric(c) && static_cast<unsigned char>(c) < 0x80) escaped.push_back('\\');
    escaped.push_back(c);
  }
  if (text.empty() || escaped.size() > kPatternBytesMax) {
    return BadPattern(text, absl::StrCat("1 to ", kPatternBytesMax, " bytes are valid"));
  }
  return CompileRewritten(escaped);
}

absl::StatusOr<Pattern> Pattern::CompileRewritten(std::string_view pattern) {
  int error = 0;
  PCRE2_SIZE error_offset = 0;
  Pattern compiled;
  compiled.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                     PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error,
                                     &error_offset, nullptr));
  if (compiled.code_ == nullptr) {
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(error, message, sizeof(message));
    return BadPattern(pattern, reinterpret_cast<const char*>(message));
  }
  // Where the processor or the kernel forbids JIT, matching interprets: slower, same results.
  pcre2_jit_compile(static_cast<pcre2_code*>(compiled.code_.get()), PCRE2_JIT_COMPLETE);
  return compiled;
}

absl::Status Pattern::Split(std::string_view text, std::vector<std::string_view>& pieces) const {
  auto* code = static_cast<pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
      pcre2_match_data_create_from_pattern(code, nullptr), &pcre2_match_data_free);
  if (match == nullptr) return absl::ResourceExhaustedError("no memory for a pattern match");
  const auto add = [&](size_t begin, size_t end) {
    if (begin < end) pieces.push_back(text.substr(begin, end - begin));
  };
  size_t done = 0;  // everything before is in a piece
  size_t from = 0;
  while (from < text.size()) {
    const int count = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                  from, PCRE2_NO_UTF_CHECK, match.get(), nullptr);
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("splitting the text failed: PCRE2 error ", count));
    }
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(match.get());
    add(done, bounds[0]);
    add(bounds[0], bounds[1]);
    done = bounds[1];
    from = bounds[1];
    if (bounds[0] == bounds[1]) {  // an empty match: go on behind the next character
      do {
        ++from;
      } while (from < text.size() && (static_cast<unsigned char>(text[from]) & 0xc0) == 0x80);
    }
  }
  add(done, text.size());
  return absl::OkStatus();
}

}  // namespace kvstore::engine
