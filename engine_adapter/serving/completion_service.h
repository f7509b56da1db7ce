// CompletionService answers requests in words: it renders and tokenizes prompts, checks what may be
// asked, and hands the rest to the scheduler. Both the HTTP and the gRPC side stand on it.
//
// Threads: thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "engine_adapter/serving/answer_stream.h"
#include "engine_adapter/serving/scheduler.h"
#include "engine_adapter/serving/serving_metrics.h"
#include "engine_adapter/tokenizer/chat_template.h"
#include "engine_adapter/tokenizer/tokenizer.h"
#include "kernels/sampling.h"

namespace kvstore::engine {

// Bounds of one request, beside those of the model.
inline constexpr size_t kStopsMax = 4;
inline constexpr size_t kStopBytesMax = 256;
inline constexpr size_t kMessagesMax = 4096;

struct Conversation {
  std::vector<ChatMessage> messages;
};

// What is asked for, in whatever protocol.
struct CompletionRequest {
  std::variant<std::string, std::vector<uint32_t>, Conversation> prompt;
  std::optional<int64_t> max_tokens;  // nullopt: the service's default
  kernels::SamplingOptions sampling;
  std::optional<uint64_t> seed;  // nullopt: another one each time
  std::vector<std::string> stops;
};

struct ServedModel {
  std::string name;            // what requests call it
  int64_t context_tokens = 0;  // prompt and answer together
  int64_t default_max_tokens = 512;
};

class CompletionService {
 public:
  // What is referred to outlives it. Without `chat` conversations are refused.
  CompletionService(ServedModel model, const Tokenizer& tokenizer, std::optional<ChatTemplate> chat,
                    Scheduler& scheduler, ServingMetrics& metrics);

  const ServedModel& model() const { return model_; }

  // Tokenizes (some milliseconds for a long prompt) and queues. `notify`, `on_news`: see AnswerStream; called on the
  // engine's thread.
  // Errors, those of a bad request with the parameter in StatusParameter(): InvalidArgument;
  // ResourceExhausted, too many requests wait; Unavailable, the server is ending.
  absl::StatusOr<std::shared_ptr<AnswerStream>> Start(const CompletionRequest& request,
                                                      Notify notify, std::function<void()> on_news);
  void Cancel(AnswerStream& answer) { scheduler_.Cancel(answer); }

 private:
  absl::StatusOr<std::vector<uint32_t>> Tokenize(const CompletionRequest& request) const;
  absl::StatusOr<GenerateRequest> Prepare(const CompletionRequest& request) const;

  const ServedModel model_;
  const Tokenizer& tokenizer_;
  const std::optional<ChatTemplate> chat_;
  Scheduler& scheduler_;
  ServingMetrics& metrics_;
};

// A status about one parameter of a request, and the parameter's name; empty if there is none.
absl::Status ParameterError(std::string_view parameter, std::string_view message);
std::string StatusParameter(const absl::Status& status);

}  // namespace kvstore::engine
