#include "engine_adapter/serving/completion_service.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"

namespace kvstore::engine {
namespace {

constexpr char kParameterUrl[] = "kvstore.parameter";

uint64_t RandomSeed() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

// Who is told about the prompt calls it by its protocol's name; this one serves all.
absl::Status CheckStops(const std::vector<std::string>& stops) {
  if (stops.size() > kStopsMax) {
    return ParameterError("stop", absl::StrCat("at most ", kStopsMax, " stop strings are valid"));
  }
  for (const std::string& stop : stops) {
    if (stop.empty() || stop.size() > kStopBytesMax) {
      return ParameterError("stop", absl::StrCat("a stop string of ", stop.size(),
                                                 " bytes; valid are 1 to ", kStopBytesMax));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ParameterError(std::string_view parameter, std::string_view message) {
  absl::Status status = absl::InvalidArgumentError(AbslView(message));
  status.SetPayload(kParameterUrl, absl::Cord(AbslView(parameter)));
  return status;
}

std::string StatusParameter(const absl::Status& status) {
  const auto payload = status.GetPayload(kParameterUrl);
  return payload.has_value() ? std::string(*payload) : std::string();
}

CompletionService::CompletionService(ServedModel model, const Tokenizer& tokenizer,
                                     std::optional<ChatTemplate> chat, Scheduler& scheduler,
                                     ServingMetrics& metrics)
    : model_(std::move(model)),
      tokenizer_(tokenizer),
      chat_(std::move(chat)),
      scheduler_(scheduler),
      metrics_(metrics) {}

absl::StatusOr<std::vector<uint32_t>> CompletionService::Tokenize(
    const CompletionRequest& request) const {
  if (const auto* ids = std::get_if<std::vector<uint32_t>>(&request.prompt)) return *ids;
  if (const auto* text = std::get_if<std::string>(&request.prompt)) {
    return tokenizer_.Encode(*text, AddSpecialTokens::kYes);
  }
  if (!chat_.has_value()) {
    return absl::InvalidArgumentError(
        "this model has no chat template that the server knows; give a rendered prompt instead");
  }
  ASSIGN_OR_RETURN(const std::string text,
                   chat_->Render(std::get<Conversation>(request.prompt).messages));
  return tokenizer_.Encode(text, AddSpecialTokens::kNo);
}

absl::StatusOr<GenerateRequest> CompletionService::Prepare(const CompletionRequest& request) const {
  const bool is_chat = std::holds_alternative<Conversation>(request.prompt);
  const std::string_view prompt_name = is_chat ? "messages" : "prompt";
  GenerateRequest prepared{.sampling = request.sampling,
                           .seed = request.seed.has_value() ? *request.seed : RandomSeed()};
  RETURN_IF_ERROR(CheckStops(request.stops));
  absl::StatusOr<std::vector<uint32_t>> ids = Tokenize(request);
  if (!ids.ok()) return ParameterError(prompt_name, StdView(ids.status().message()));
  prepared.prompt_ids = *std::move(ids);
  const auto prompt = static_cast<int64_t>(prepared.prompt_ids.size());
  if (prompt == 0) return ParameterError(prompt_name, "the prompt has no tokens");
  const int64_t room = model_.context_tokens - prompt;
  if (room < 1 || request.max_tokens.value_or(1) > room) {
    return ParameterError(
        room < 1 ? prompt_name : "max_tokens",
        absl::StrCat("a prompt of ", prompt, " tokens and max_tokens ",
                     request.max_tokens.value_or(1), " are more than this server's context of ",
                     model_.context_tokens, " tokens"));
  }
  prepared.max_tokens = request.max_tokens.value_or(std::min(room, model_.default_max_tokens));
  return prepared;
}

absl::StatusOr<std::shared_ptr<AnswerStream>> CompletionService::Start(
    const CompletionRequest& request, Notify notify, std::function<void()> on_news) {
  const Timeline::Time arrival = Timeline::Now();
  absl::StatusOr<GenerateRequest> prepared = Prepare(request);
  absl::Status status = prepared.status();
  auto answer =
      std::make_shared<AnswerStream>(tokenizer_, request.stops, notify, std::move(on_news));
  if (status.ok()) {
    prepared->arrival = arrival;
    status = scheduler_.Submit(*std::move(prepared), answer);
  }
  if (status.ok()) return answer;
  metrics_.CountRefused(absl::IsResourceExhausted(status) ? ServingMetrics::Refusal::kQueueFull
                        : absl::IsUnavailable(status)     ? ServingMetrics::Refusal::kDraining
                                                          : ServingMetrics::Refusal::kInvalid);
  return status;
}

}  // namespace kvstore::engine
