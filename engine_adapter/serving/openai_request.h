// Reads the bodies of OpenAI's /v1/completions and /v1/chat/completions.
//
// Nothing is ignored that would change the answer: what we do not do is refused by name, unless it
// is given with the value that means "off". Untrusted input: depth is bounded here, size by the
// caller.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine_adapter/serving/completion_service.h"

namespace kvstore::engine {

enum class Endpoint : uint8_t { kCompletions, kChatCompletions };

struct OpenAiRequest {
  std::string model;
  CompletionRequest completion;
  bool is_stream = false;
  bool wants_usage = false;  // as a last chunk of a stream
};

// Errors: InvalidArgument with the parameter in StatusParameter().
absl::StatusOr<OpenAiRequest> ParseOpenAiRequest(Endpoint endpoint, std::string_view body);

}  // namespace kvstore::engine
