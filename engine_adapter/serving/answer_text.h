// AnswerText turns the tokens of one answer into text that may be sent: whole characters, and never
// a part of a stop string, whatever tokens it is cut into.
//
// The answer ends before the stop string that is complete first (of several that end at the same
// byte, the longest).
//
// Threads: externally synchronised. `tokenizer` outlives it.
#pragma once

#include <string>
#include <vector>

#include "engine_adapter/tokenizer/tokenizer.h"

namespace kvstore::engine {

class AnswerText {
 public:
  // `stops`: valid UTF-8, none empty.
  AnswerText(const Tokenizer& tokenizer, std::vector<std::string> stops)
      : decoder_(tokenizer, SkipSpecialTokens::kYes), stops_(std::move(stops)) {}

  // Text that became certain with `token`; often empty. A token that the tokenizer does not know
  // (models pad their vocabulary) has no text.
  std::string Push(uint32_t token);
  // What is left when no token follows.
  std::string Finish();

  // A stop string was found: nothing behind it will ever be returned.
  bool is_stopped() const { return is_stopped_; }

 private:
  std::string TakeCertain();

  StreamDecoder decoder_;
  const std::vector<std::string> stops_;
  std::string held_;  // may yet become a stop string: shorter than the longest
  bool is_stopped_ = false;
};

}  // namespace kvstore::engine
