// Pattern is a compiled regular expression of a pre-tokenizer (PCRE2 with UTF, Unicode properties
// and JIT).
//
// tokenizer.json patterns are written for Oniguruma. The two agree on what real tokenizers use
// except for \s, where PCRE2 adds U+180E; \s and \S are rewritten to the White_Space property.
// Escapes whose meaning differs (\w, \d, \b, \h, ...) are refused.
//
// Threads: immutable after Compile(); Split() may run on any thread.
// Unicode: classes are those of the PCRE2 library (10.42: Unicode 14); characters assigned later
// count as unassigned.
#pragma once

#include <absl/status/statusor.h>

#include <memory>
#include <string_view>
#include <vector>

namespace kvstore::engine {

class Pattern {
 public:
  static constexpr size_t kPatternBytesMax = 8192;

  // Errors: InvalidArgument, the pattern does not compile or uses an escape we do not know.
  static absl::StatusOr<Pattern> Compile(std::string_view pattern);

  // As Compile, but `text` matches itself.
  static absl::StatusOr<Pattern> CompileLiteral(std::string_view text);

  // Appends the matches and what lies between them, in order, without empty pieces; they cover
  // `text`. Requires: valid UTF-8. Errors: ResourceExhausted, the pattern needs more backtracking
  // than is allowed.
  absl::Status Split(std::string_view text, std::vector<std::string_view>& pieces) const;

 private:
  struct CodeDeleter {
    void operator()(void* code) const;
  };

  static absl::StatusOr<Pattern> CompileRewritten(std::string_view pattern);

  std::unique_ptr<void, CodeDeleter> code_;  // pcre2_code
};

}  // namespace kvstore::engine
