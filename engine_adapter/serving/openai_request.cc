#include "engine_adapter/serving/openai_request.h"

#include <array>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine_adapter/json/json_file.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"

namespace kvstore::engine {
namespace {

using nlohmann::json;

// Parameters that we do not have, and the value that asks for nothing.
struct Absent {
  const char* name;
  json off;
};

const std::vector<Absent>& AbsentParameters() {
  static const std::vector<Absent> kAbsent = {
      {"n", 1},
      {"best_of", 1},
      {"echo", false},
      {"suffix", ""},
      {"logprobs", false},
      {"top_logprobs", 0},
      {"logit_bias", json::object()},
      {"presence_penalty", 0},
      {"frequency_penalty", 0},
      {"tools", json::array()},
      {"tool_choice", "none"},
      {"functions", json::array()},
      {"function_call", "none"},
      {"parallel_tool_calls", true},
      {"response_format", {{"type", "text"}}},
      {"modalities", {"text"}},
      {"service_tier", "auto"},
      {"store", false},
  };
  return kAbsent;
}

// Parameters that change nothing in the answer.
constexpr std::array kIgnored = {"user", "metadata", "safety_identifier", "prompt_cache_key"};

constexpr std::array kKnown = {
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "top_k", "seed",   "stop",     "stream",     "stream_options"};

absl::Status CheckNames(const json& body) {
  for (const auto& [name, value] : body.items()) {
    const auto is_name = [&name = name](const char* known) { return name == known; };
    if (std::any_of(kKnown.begin(), kKnown.end(), is_name)) continue;
    if (std::any_of(kIgnored.begin(), kIgnored.end(), is_name)) continue;
    const Absent* absent = nullptr;
    for (const Absent& candidate : AbsentParameters()) {
      if (name == candidate.name) absent = &candidate;
    }
    if (absent == nullptr) {
      return ParameterError(name, absl::StrCat("unknown parameter \"", name.substr(0, 64), "\""));
    }
    if (value.is_null() || value == absent->off) continue;
    return ParameterError(name, absl::StrCat("this server does not have ", name,
                                             "; leave it away or give ", absent->off.dump()));
  }
  return absl::OkStatus();
}

const json* Find(const json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

absl::StatusOr<double> NumberOr(const json& body, const char* key, double if_absent, double min,
                                double max) {
  const json* value = Find(body, key);
  if (value == nullptr) return if_absent;
  if (!value->is_number() || !(value->get<double>() >= min) || !(value->get<double>() <= max)) {
    return ParameterError(key,
                          absl::StrCat(key, ": a number from ", min, " to ", max, " is valid"));
  }
  return value->get<double>();
}

absl::StatusOr<std::optional<int64_t>> Integer(const json& body, const char* key, int64_t min,
                                               int64_t max) {
  const json* value = Find(body, key);
  if (value == nullptr) return std::nullopt;
  const bool fits = value->is_number_integer() &&
                    !(value->is_number_unsigned() && value->get<uint64_t>() > INT64_MAX);
  if (!fits || value->get<int64_t>() < min || value->get<int64_t>() > max) {
    return ParameterError(key,
                          absl::StrCat(key, ": an integer from ", min, " to ", max, " is valid"));
  }
  return value->get<int64_t>();
}

absl::StatusOr<bool> BoolOr(const json& object, const char* key, bool if_absent) {
  const json* value = Find(object, key);
  if (value == nullptr) return if_absent;
  if (!value->is_boolean()) {
    return ParameterError(key, absl::StrCat(key, ": true or false is valid"));
  }
  return value->get<bool>();
}

bool IsTokenId(const json& value) {
  return value.is_number_unsigned() && value.get<uint64_t>() <= UINT32_MAX;
}

// A text, a list of token ids, or a list of one of either.
absl::Status ReadPrompt(const json& body, CompletionRequest& request) {
  const json* prompt = Find(body, "prompt");
  if (prompt != nullptr && prompt->is_array() && prompt->size() == 1 && !IsTokenId(prompt->at(0))) {
    prompt = &prompt->at(0);
  }
  if (prompt != nullptr && prompt->is_string()) {
    request.prompt = prompt->get<std::string>();
    return absl::OkStatus();
  }
  if (prompt != nullptr && prompt->is_array() && !prompt->empty() &&
      std::all_of(prompt->begin(), prompt->end(), IsTokenId)) {
    request.prompt = prompt->get<std::vector<uint32_t>>();
    return absl::OkStatus();
  }
  return ParameterError("prompt", "prompt: one text or one list of token ids is valid");
}

// A text, or a list of parts that are texts.
absl::StatusOr<std::string> ReadContent(const json& message, const std::string& parameter) {
  const json* content = Find(message, "content");
  if (content != nullptr && content->is_string()) return content->get<std::string>();
  std::string text;
  bool is_valid = content != nullptr && content->is_array() && !content->empty();
  for (size_t i = 0; is_valid && i < content->size(); ++i) {
    const json& part = content->at(i);
    is_valid = part.is_object() && part.value("type", json()) == "text" &&
               part.value("text", json()).is_string();
    if (is_valid) text += part.at("text").get<std::string>();
  }
  if (is_valid) return text;
  return ParameterError(parameter, "content: a text or a list of text parts is valid");
}

absl::Status ReadMessages(const json& body, CompletionRequest& request) {
  const json* messages = Find(body, "messages");
  if (messages == nullptr || !messages->is_array() || messages->empty() ||
      messages->size() > kMessagesMax) {
    return ParameterError(
        "messages", absl::StrCat("messages: a list of 1 to ", kMessagesMax, " messages is valid"));
  }
  Conversation conversation;
  for (size_t i = 0; i < messages->size(); ++i) {
    const json& message = messages->at(i);
    const std::string parameter = absl::StrCat("messages[", i, "]");
    if (!message.is_object() || !message.value("role", json()).is_string()) {
      return ParameterError(parameter, "a message has a role and a content");
    }
    for (const auto& [name, value] : message.items()) {
      if (name == "role" || name == "content" || value.is_null()) continue;
      return ParameterError(parameter, absl::StrCat("this server does not have \"",
                                                    name.substr(0, 64), "\" in messages"));
    }
    ASSIGN_OR_RETURN(std::string content, ReadContent(message, parameter));
    conversation.messages.push_back({message.at("role").get<std::string>(), std::move(content)});
  }
  request.prompt = std::move(conversation);
  return absl::OkStatus();
}

absl::Status ReadStops(const json& body, CompletionRequest& request) {
  const json* stop = Find(body, "stop");
  if (stop == nullptr) return absl::OkStatus();
  const json list = stop->is_string() ? json::array({*stop}) : *stop;
  const bool is_valid =
      list.is_array() && list.size() <= kStopsMax &&
      std::all_of(list.begin(), list.end(), [](const json& value) { return value.is_string(); });
  if (!is_valid) {
    return ParameterError(
        "stop", absl::StrCat("stop: a text or a list of at most ", kStopsMax, " is valid"));
  }
  request.stops = list.get<std::vector<std::string>>();
  return absl::OkStatus();
}

absl::Status ReadLimits(Endpoint endpoint, const json& body, CompletionRequest& request) {
  constexpr int64_t kTokensMax = 1 << 30;
  ASSIGN_OR_RETURN(request.max_tokens, Integer(body, "max_tokens", 1, kTokensMax));
  ASSIGN_OR_RETURN(const auto newer, Integer(body, "max_completion_tokens", 1, kTokensMax));
  if (newer.has_value()) {
    if (endpoint == Endpoint::kCompletions || request.max_tokens.value_or(*newer) != *newer) {
      return ParameterError("max_completion_tokens", "give max_tokens alone");
    }
    request.max_tokens = newer;
  }
  // OpenAI's default of the older endpoint.
  if (endpoint == Endpoint::kCompletions && !request.max_tokens) request.max_tokens = 16;
  return absl::OkStatus();
}

absl::Status ReadSampling(const json& body, CompletionRequest& request) {
  ASSIGN_OR_RETURN(const double temperature, NumberOr(body, "temperature", 1.0, 0.0, 2.0));
  ASSIGN_OR_RETURN(const double top_p, NumberOr(body, "top_p", 1.0, 1e-6, 1.0));
  ASSIGN_OR_RETURN(const auto top_k, Integer(body, "top_k", -1, 1 << 30));
  ASSIGN_OR_RETURN(const auto seed, Integer(body, "seed", INT64_MIN, INT64_MAX));
  // -1 and 0 mean all, as in other servers that have top_k.
  request.sampling = {.temperature = static_cast<float>(temperature),
                      .top_k = std::max<int64_t>(top_k.value_or(0), 0),
                      .top_p = static_cast<float>(top_p)};
  if (seed.has_value()) request.seed = static_cast<uint64_t>(*seed);
  return absl::OkStatus();
}

absl::Status ReadStream(const json& body, OpenAiRequest& request) {
  ASSIGN_OR_RETURN(request.is_stream, BoolOr(body, "stream", false));
  const json* options = Find(body, "stream_options");
  if (options == nullptr) return absl::OkStatus();
  if (!request.is_stream || !options->is_object()) {
    return ParameterError("stream_options", "stream_options: an object, with stream only");
  }
  for (const auto& [name, value] : options->items()) {
    if (name == "include_usage" || value == false || value.is_null()) continue;
    return ParameterError("stream_options", "stream_options: include_usage is what there is");
  }
  ASSIGN_OR_RETURN(request.wants_usage, BoolOr(*options, "include_usage", false));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<OpenAiRequest> ParseOpenAiRequest(Endpoint endpoint, std::string_view text) {
  ASSIGN_OR_RETURN(const json body, ParseJsonObject(text, "the request's body"));
  RETURN_IF_ERROR(CheckNames(body));
  OpenAiRequest request;
  const json* model = Find(body, "model");
  if (model == nullptr || !model->is_string()) {
    return ParameterError("model", "model: the name of a model of /v1/models is needed");
  }
  request.model = model->get<std::string>();
  const bool is_chat = endpoint == Endpoint::kChatCompletions;
  if (const char* other = is_chat ? "prompt" : "messages"; Find(body, other) != nullptr) {
    return ParameterError(other, absl::StrCat("this endpoint has no ", other));
  }
  RETURN_IF_ERROR(is_chat ? ReadMessages(body, request.completion)
                          : ReadPrompt(body, request.completion));
  RETURN_IF_ERROR(ReadLimits(endpoint, body, request.completion));
  RETURN_IF_ERROR(ReadSampling(body, request.completion));
  RETURN_IF_ERROR(ReadStops(body, request.completion));
  RETURN_IF_ERROR(ReadStream(body, request));
  return request;
}

}  // namespace kvstore::engine
