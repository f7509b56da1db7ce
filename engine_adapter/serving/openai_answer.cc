#include "engine_adapter/serving/openai_answer.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "kvstore/base/text.h"

namespace kvstore::engine {
namespace {

using nlohmann::json;

// Texts are UTF-8 where we made them; names from a request may be cut.
std::string Dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

json FinishReason(const AnswerEnd& end) {
  return end.reason == EndReason::kLength ? "length" : "stop";
}

json UsageOf(const AnswerEnd& end, int64_t block_tokens) {
  json by_tier = json::object();
  for (size_t source = 0; source < kNumBlockSources; ++source) {
    by_tier[std::string(BlockSourceName(static_cast<BlockSource>(source)))] =
        end.load.blocks_by_source[source] * block_tokens;
  }
  return {{"prompt_tokens", end.prompt_tokens},
          {"completion_tokens", end.output_tokens},
          {"total_tokens", end.prompt_tokens + end.output_tokens},
          {"prompt_tokens_details", {{"cached_tokens", end.reused_tokens}}},
          {"kvstore",
           {{"cached_tokens_by_tier", std::move(by_tier)},
            {"load_failures", json(end.load.failures)}}}};
}

json ModelObject(const ServedModel& model, int64_t created) {
  return {{"id", model.name},
          {"object", "model"},
          {"created", created},
          {"owned_by", "kvengine"},
          {"max_model_len", model.context_tokens}};
}

// {id, object, created, model, choices}
json Frame(std::string_view object, const std::string& id, const std::string& model,
           int64_t created, json choices) {
  return {{"id", id},
          {"object", object},
          {"created", created},
          {"model", model},
          {"choices", std::move(choices)}};
}

std::string_view ErrorType(unsigned http_code) {
  switch (http_code) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    default:
      return http_code < 500 ? "invalid_request_error" : "server_error";
  }
}

}  // namespace

std::string OpenAiAnswer::Whole(std::string_view text, const AnswerEnd& end) const {
  const bool is_chat = endpoint_ == Endpoint::kChatCompletions;
  json choice = {{"index", 0}, {"logprobs", nullptr}, {"finish_reason", FinishReason(end)}};
  if (is_chat) {
    choice["message"] = {{"role", "assistant"}, {"content", text}, {"refusal", nullptr}};
  } else {
    choice["text"] = text;
  }
  json body = Frame(is_chat ? "chat.completion" : "text_completion", id_, model_, created_,
                    json::array({std::move(choice)}));
  body["usage"] = UsageOf(end, block_tokens_);
  return Dump(body);
}

std::string OpenAiAnswer::FirstChunk() const {
  return Dump(Frame("chat.completion.chunk", id_, model_, created_,
                    json::array({{{"index", 0},
                                  {"delta", {{"role", "assistant"}, {"content", ""}}},
                                  {"logprobs", nullptr},
                                  {"finish_reason", nullptr}}})));
}

std::string OpenAiAnswer::TextChunk(std::string_view text) const {
  json choice = {{"index", 0}, {"logprobs", nullptr}, {"finish_reason", nullptr}};
  const bool is_chat = endpoint_ == Endpoint::kChatCompletions;
  if (is_chat) {
    choice["delta"] = {{"content", text}};
  } else {
    choice["text"] = text;
  }
  return Dump(Frame(is_chat ? "chat.completion.chunk" : "text_completion", id_, model_, created_,
                    json::array({std::move(choice)})));
}

std::string OpenAiAnswer::LastChunk(const AnswerEnd& end) const {
  json choice = {{"index", 0}, {"logprobs", nullptr}, {"finish_reason", FinishReason(end)}};
  const bool is_chat = endpoint_ == Endpoint::kChatCompletions;
  if (is_chat) {
    choice["delta"] = json::object();
  } else {
    choice["text"] = "";
  }
  return Dump(Frame(is_chat ? "chat.completion.chunk" : "text_completion", id_, model_, created_,
                    json::array({std::move(choice)})));
}

std::string OpenAiAnswer::UsageChunk(const AnswerEnd& end) const {
  const bool is_chat = endpoint_ == Endpoint::kChatCompletions;
  json body = Frame(is_chat ? "chat.completion.chunk" : "text_completion", id_, model_, created_,
                    json::array());
  body["usage"] = UsageOf(end, block_tokens_);
  return Dump(body);
}

OpenAiError MakeError(unsigned http_code, std::string_view code, std::string_view message,
                      std::string_view parameter) {
  const auto or_null = [](std::string_view text) { return text.empty() ? json() : json(text); };
  return {.http_code = http_code,
          .body = Dump({{"error",
                         {{"message", message},
                          {"type", ErrorType(http_code)},
                          {"param", or_null(parameter)},
                          {"code", or_null(code)}}}})};
}

OpenAiError ErrorOf(const absl::Status& status) {
  const std::string_view message = StdView(status.message());
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return MakeError(400, "invalid_value", message, StatusParameter(status));
    case absl::StatusCode::kNotFound:
      return MakeError(404, "model_not_found", message, StatusParameter(status));
    case absl::StatusCode::kResourceExhausted:
      return MakeError(429, "server_busy", message);
    case absl::StatusCode::kUnavailable:
      return MakeError(503, "unavailable", message);
    default:
      return MakeError(500, "internal", message);
  }
}

std::string ModelJson(const ServedModel& model, int64_t created) {
  return Dump(ModelObject(model, created));
}

std::string ModelListJson(const ServedModel& model, int64_t created) {
  return Dump({{"object", "list"}, {"data", json::array({ModelObject(model, created)})}});
}

}  // namespace kvstore::engine
