// Writes OpenAI's JSON: whole answers, chunks of a stream, models, errors.
//
// Our own additions are under "kvstore" in usage: cached tokens by tier, and why blocks could not
// be loaded. Add fields, never rename.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "engine_adapter/serving/openai_request.h"
#include "engine_adapter/serving/token_sink.h"

namespace kvstore::engine {

// The answer to one request, as it is written piece by piece. Every function returns one JSON text.
class OpenAiAnswer {
 public:
  // `created`: seconds since the epoch, for display.
  OpenAiAnswer(Endpoint endpoint, std::string id, std::string model, int64_t created,
               int64_t block_tokens)
      : endpoint_(endpoint),
        id_(std::move(id)),
        model_(std::move(model)),
        created_(created),
        block_tokens_(block_tokens) {}

  std::string Whole(std::string_view text, const AnswerEnd& end) const;

  // Of a stream. FirstChunk of a chat names the role; other endpoints begin with text at once.
  bool has_first_chunk() const { return endpoint_ == Endpoint::kChatCompletions; }
  std::string FirstChunk() const;
  std::string TextChunk(std::string_view text) const;
  std::string LastChunk(const AnswerEnd& end) const;
  std::string UsageChunk(const AnswerEnd& end) const;

 private:
  const Endpoint endpoint_;
  const std::string id_;
  const std::string model_;
  const int64_t created_;
  const int64_t block_tokens_;
};

// What a failed request is told.
struct OpenAiError {
  unsigned http_code = 500;
  std::string body;
};
OpenAiError ErrorOf(const absl::Status& status);
// `code`: OpenAI's name of what is wrong, or empty; `parameter` likewise.
OpenAiError MakeError(unsigned http_code, std::string_view code, std::string_view message,
                      std::string_view parameter = {});

std::string ModelJson(const ServedModel& model, int64_t created);
std::string ModelListJson(const ServedModel& model, int64_t created);

}  // namespace kvstore::engine
