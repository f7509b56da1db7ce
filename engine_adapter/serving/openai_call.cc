#include "engine_adapter/serving/openai_call.h"

#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

std::string NewId(Endpoint endpoint) {
  thread_local std::mt19937_64 generator{std::random_device{}()};
  return absl::StrFormat("%s-%016x%016x",
                         endpoint == Endpoint::kChatCompletions ? "chatcmpl" : "cmpl", generator(),
                         generator());
}

constexpr size_t kUnreadBytesMax = 64 << 10;

std::string Event(const std::string& json) { return absl::StrCat("data: ", json, "\n\n"); }

}  // namespace

HttpAnswer ErrorAnswer(const OpenAiError& error) {
  HttpAnswer answer{.code = error.http_code, .body = error.body};
  if (error.http_code == 429 || error.http_code == 503) answer.fields = {{"Retry-After", "1"}};
  if (error.http_code == 401) answer.fields = {{"WWW-Authenticate", "Bearer"}};
  return answer;
}

bool OpenAiCall::Start(TaskThreads& edge) {
  auto self = shared_from_this();
  exchange_->set_events(
      {.on_poke = [self] { self->OnPoke(); }, .on_gone = [self] { self->OnGone(); }});
  return edge.Post([self, body = exchange_->TakeBody()] { self->Submit(body->text()); });
}

void OpenAiCall::Submit(const std::string& body) {
  submitted_ = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const OpenAiRequest request, ParseOpenAiRequest(endpoint_, body));
    if (request.model != service_.model().name) {
      return absl::NotFoundError(absl::StrCat("no model \"", request.model.substr(0, 256),
                                              "\"; there is ", service_.model().name));
    }
    model_ = request.model;
    is_stream_ = request.is_stream;
    wants_usage_ = request.wants_usage;
    // The exchange, not the call: the answer is ours, and would keep us.
    ASSIGN_OR_RETURN(answer_, service_.Start(request.completion,
                                             is_stream_ ? Notify::kEachToken : Notify::kAtEnd,
                                             [exchange = exchange_] { exchange->Poke(); }));
    return absl::OkStatus();
  }();
  is_submitted_ = true;
  if (is_gone_ && answer_ != nullptr) service_.Cancel(*answer_);
  exchange_->Poke();
}

void OpenAiCall::OnPoke() {
  if (has_ended_ || !is_submitted_) return;
  if (!submitted_.ok()) {
    has_ended_ = true;
    return exchange_->Send(ErrorAnswer(ErrorOf(submitted_)));
  }
  if (!writer_.has_value()) {
    writer_.emplace(endpoint_, NewId(endpoint_), model_, absl::ToUnixSeconds(absl::Now()),
                    block_tokens_);
  }
  SendNews();
}

void OpenAiCall::OnGone() {
  is_gone_ = true;
  if (is_submitted_ && answer_ != nullptr) service_.Cancel(*answer_);
}

// A client that does not read costs its text, not the JSON around each piece of it: that waits.
void OpenAiCall::SendNews() {
  if (exchange_->unread_bytes() > kUnreadBytesMax) return;
  const AnswerStream::News news = answer_->Take();
  if (news.is_empty()) return;
  has_ended_ = news.end.has_value();
  if (is_stream_) return SendPiece(news);
  text_ += news.text;
  if (news.end.has_value()) SendWhole(*news.end);
}

void OpenAiCall::SendWhole(const AnswerEnd& end) {
  if (end.reason == EndReason::kFailed) {
    exchange_->Send(ErrorAnswer(ErrorOf(end.status)));
  } else if (end.reason == EndReason::kCancelled) {
    exchange_->Send(ErrorAnswer(MakeError(503, "cancelled", "the server is ending")));
  } else {
    exchange_->Send({.body = writer_->Whole(text_, end)});
  }
}

void OpenAiCall::SendPiece(const AnswerStream::News& news) {
  // A request that fails before its first token gets a plain error.
  const bool has_failed = news.end.has_value() && (news.end->reason == EndReason::kFailed ||
                                                   news.end->reason == EndReason::kCancelled);
  if (has_failed && !has_begun_) return SendWhole(*news.end);
  if (!std::exchange(has_begun_, true)) {
    exchange_->BeginStream("text/event-stream");
    if (writer_->has_first_chunk()) exchange_->Write(Event(writer_->FirstChunk()));
  }
  if (!news.text.empty()) exchange_->Write(Event(writer_->TextChunk(news.text)));
  if (!news.end.has_value()) return;
  if (has_failed) {
    const absl::Status status = news.end->reason == EndReason::kFailed
                                    ? news.end->status
                                    : absl::UnavailableError("the server is ending");
    exchange_->Write(Event(ErrorOf(status).body));
    exchange_->BreakStream();
  } else {
    exchange_->Write(Event(writer_->LastChunk(*news.end)));
    if (wants_usage_) exchange_->Write(Event(writer_->UsageChunk(*news.end)));
    exchange_->Write("data: [DONE]\n\n");
    exchange_->EndStream();
  }
}

}  // namespace kvstore::engine
