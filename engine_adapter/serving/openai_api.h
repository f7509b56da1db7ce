// OpenAiApi serves OpenAI's HTTP interface: /v1/completions, /v1/chat/completions (whole and as
// server-sent events), /v1/models, and /health and /metrics beside them.
//
// Who may ask: on a loopback address every local process; no web page, since only JSON bodies and
// hosts that are this machine's are taken. With an API key, those that have it, from anywhere;
// /health is free.
//
// Threads: Check and Handle on the HTTP server's; prompts are tokenized on `edge`'s.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "engine_adapter/serving/completion_service.h"
#include "engine_adapter/serving/http_server.h"
#include "engine_adapter/serving/openai_request.h"
#include "engine_adapter/serving/task_threads.h"

namespace kvstore::engine {

struct OpenAiApiOptions {
  std::string api_key;  // empty: none is asked for
  int64_t block_tokens = 0;
  int64_t created = 0;  // of the model, for display: seconds since the epoch
};

class OpenAiApi {
 public:
  // What is referred to outlives it, and the server that it serves.
  OpenAiApi(OpenAiApiOptions options, CompletionService& service, Scheduler& scheduler,
            ServingMetrics& metrics, TaskThreads& edge);

  HttpServer::Callbacks Callbacks();

 private:
  std::optional<HttpAnswer> Check(const HttpRequest& request) const;
  void Handle(const std::shared_ptr<HttpExchange>& exchange);
  HttpAnswer Health() const;

  const OpenAiApiOptions options_;
  CompletionService& service_;
  Scheduler& scheduler_;
  ServingMetrics& metrics_;
  TaskThreads& edge_;
};

// True if the two are equal; the time it takes tells only their lengths.
bool IsSameSecret(std::string_view a, std::string_view b);

}  // namespace kvstore::engine
