#include "engine_adapter/serving/openai_api.h"

#include <array>
#include <string_view>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine_adapter/serving/openai_answer.h"
#include "engine_adapter/serving/openai_call.h"

namespace kvstore::engine {
namespace {

constexpr std::string_view kModels = "/v1/models";
constexpr std::string_view kCompletions = "/v1/completions";
constexpr std::string_view kChatCompletions = "/v1/chat/completions";
constexpr std::array kOtherPages = {std::string_view("/health"), std::string_view("/metrics")};

HttpAnswer Refuse(unsigned code, std::string_view name, std::string_view message) {
  return ErrorAnswer(MakeError(code, name, message));
}

bool IsPost(std::string_view path) { return path == kCompletions || path == kChatCompletions; }

// /v1/models or /v1/models/NAME
bool IsModels(std::string_view path) {
  return path == kModels || (path.starts_with(kModels) && path.substr(kModels.size(), 1) == "/");
}

// "localhost:8000", "127.0.0.1", "[::1]:8000". A name that a web page made to point here is none.
bool IsThisMachine(std::string_view host) {
  if (host.starts_with("[::1]")) {
    host.remove_prefix(5);
    return host.empty() || host.starts_with(":");
  }
  host = host.substr(0, host.find(':'));
  return host == "localhost" || host == "127.0.0.1";
}

bool IsJson(std::string_view content_type) {
  const std::string_view type = content_type.substr(0, content_type.find(';'));
  return absl::StripAsciiWhitespace(absl::AsciiStrToLower(std::string(type))) == "application/json";
}

}  // namespace

bool IsSameSecret(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned char difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference = static_cast<unsigned char>(difference | (a[i] ^ b[i]));
  }
  return difference == 0;
}

OpenAiApi::OpenAiApi(OpenAiApiOptions options, CompletionService& service, Scheduler& scheduler,
                     ServingMetrics& metrics, TaskThreads& edge)
    : options_(std::move(options)),
      service_(service),
      scheduler_(scheduler),
      metrics_(metrics),
      edge_(edge) {}

HttpServer::Callbacks OpenAiApi::Callbacks() {
  return {.check_head = [this](const HttpRequest& request) { return Check(request); },
          .on_request = [this](const auto& exchange) { Handle(exchange); },
          .make_error =
              [](unsigned code, std::string_view message) {
                return Refuse(code, code == 413 ? "body_too_large" : "server_busy", message);
              },
          .on_connections =
              [this](int64_t connections, bool was_evicted) {
                metrics_.connections = connections;
                if (was_evicted) ++metrics_.evicted_connections;
              }};
}

std::optional<HttpAnswer> OpenAiApi::Check(const HttpRequest& request) const {
  const std::string_view path = request.path;
  if (!options_.api_key.empty()) {
    constexpr std::string_view kScheme = "Bearer ";
    const std::string_view given = request.authorization.has_value()
                                       ? std::string_view(*request.authorization)
                                       : std::string_view();
    const bool is_known =
        given.starts_with(kScheme) && IsSameSecret(given.substr(kScheme.size()), options_.api_key);
    if (!is_known && path != "/health") {
      return Refuse(401, "invalid_api_key", "Authorization: Bearer KEY is missing or wrong");
    }
  } else if (request.host.has_value() && !IsThisMachine(*request.host)) {
    return Refuse(403, "wrong_host", "without an API key this server answers to localhost only");
  }
  const bool is_get = IsModels(path) || std::count(kOtherPages.begin(), kOtherPages.end(), path);
  if (!is_get && !IsPost(path)) {
    return Refuse(404, "unknown_url",
                  "no such path; there are /v1/completions, /v1/chat/completions, /v1/models, "
                  "/health, /metrics");
  }
  const bool is_right =
      is_get ? request.method == "GET" || request.method == "HEAD" : request.method == "POST";
  if (!is_right) {
    HttpAnswer answer = Refuse(405, "wrong_method", is_get ? "only GET" : "only POST");
    answer.fields = {{"Allow", is_get ? "GET, HEAD" : "POST"}};
    return answer;
  }
  if (!is_get && !IsJson(request.content_type.value_or(""))) {
    return Refuse(415, "wrong_content_type", "Content-Type: application/json is needed");
  }
  return std::nullopt;
}

void OpenAiApi::Handle(const std::shared_ptr<HttpExchange>& exchange) {
  const std::string_view path = exchange->request().path;
  if (IsPost(path)) {
    const Endpoint endpoint =
        path == kCompletions ? Endpoint::kCompletions : Endpoint::kChatCompletions;
    auto call = std::make_shared<OpenAiCall>(endpoint, exchange, service_, options_.block_tokens);
    if (!call->Start(edge_)) {
      metrics_.CountRefused(ServingMetrics::Refusal::kQueueFull);
      exchange->Send(Refuse(429, "server_busy", "too many requests are waiting; try again later"));
    }
    return;
  }
  if (path == "/health") return exchange->Send(Health());
  if (path == "/metrics") {
    return exchange->Send({.content_type = "text/plain; version=0.0.4; charset=utf-8",
                           .body = metrics_.Page(scheduler_.state())});
  }
  const ServedModel& model = service_.model();
  if (path == kModels) {
    return exchange->Send({.body = ModelListJson(model, options_.created)});
  }
  if (path.substr(kModels.size() + 1) == model.name) {
    return exchange->Send({.body = ModelJson(model, options_.created)});
  }
  exchange->Send(Refuse(404, "model_not_found", absl::StrCat("there is one model, ", model.name)));
}

HttpAnswer OpenAiApi::Health() const {
  if (scheduler_.state().is_draining) {
    return {.code = 503, .body = "{\"status\":\"draining\"}\n"};
  }
  if (metrics_.is_failing()) return {.code = 503, .body = "{\"status\":\"failing\"}\n"};
  return {.body = "{\"status\":\"ok\"}\n"};
}

}  // namespace kvstore::engine
