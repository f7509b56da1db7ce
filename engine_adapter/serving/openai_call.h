// OpenAiCall is one request to /v1/completions or /v1/chat/completions on its way: parsed and
// tokenized on an edge thread, answered on the HTTP server's, piece by piece or whole.
//
//   body -> (edge thread) parse, tokenize, submit -> poke -> news of the answer -> poke ... -> end
//
// Threads: as said at each function. Lives as long as its exchange waits for it.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "engine_adapter/serving/completion_service.h"
#include "engine_adapter/serving/http_server.h"
#include "engine_adapter/serving/openai_answer.h"
#include "engine_adapter/serving/openai_request.h"
#include "engine_adapter/serving/task_threads.h"

namespace kvstore::engine {

class OpenAiCall : public std::enable_shared_from_this<OpenAiCall> {
 public:
  // `service` outlives it.
  OpenAiCall(Endpoint endpoint, std::shared_ptr<HttpExchange> exchange, CompletionService& service,
             int64_t block_tokens)
      : endpoint_(endpoint),
        exchange_(std::move(exchange)),
        service_(service),
        block_tokens_(block_tokens) {}

  // The HTTP server's thread. False: `edge` has no room; nothing was done.
  bool Start(TaskThreads& edge);

 private:
  void Submit(const std::string& body);  // an edge thread
  // The HTTP server's thread.
  void OnPoke();
  void OnGone();
  void SendNews();
  void SendWhole(const AnswerEnd& end);
  void SendPiece(const AnswerStream::News& news);

  const Endpoint endpoint_;
  std::shared_ptr<HttpExchange> exchange_;
  CompletionService& service_;
  const int64_t block_tokens_;

  // Written by the edge thread before is_submitted_.
  absl::Status submitted_;
  std::string model_;
  bool is_stream_ = false;
  bool wants_usage_ = false;
  std::shared_ptr<AnswerStream> answer_;
  std::atomic<bool> is_submitted_{false};
  // Set before is_submitted_ is read, where that is set before this is read: one of the two threads
  // sees both (all sequentially consistent).
  std::atomic<bool> is_gone_{false};

  // The HTTP server's thread.
  std::optional<OpenAiAnswer> writer_;
  std::string text_;  // of an answer that is sent whole
  bool has_begun_ = false;
  bool has_ended_ = false;
};

// {"error": ...} with what the code asks for beside it: Retry-After.
HttpAnswer ErrorAnswer(const OpenAiError& error);

}  // namespace kvstore::engine
