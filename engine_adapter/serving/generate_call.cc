#include "engine_adapter/serving/generate_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {
namespace {

grpc::Status ToGrpc(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message())};
}

absl::Status CheckRange(const char* name, double value, double min, double max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return ParameterError(name, absl::StrCat(name, " is ", value, "; valid are ", min, " to ", max));
}

absl::StatusOr<CompletionRequest> FromProto(const v1::GenerateRequest& proto) {
  CompletionRequest request;
  switch (proto.prompt_case()) {
    case v1::GenerateRequest::kText:
      request.prompt = proto.text();
      break;
    case v1::GenerateRequest::kTokenIds:
      request.prompt =
          std::vector<uint32_t>(proto.token_ids().ids().begin(), proto.token_ids().ids().end());
      break;
    case v1::GenerateRequest::kConversation: {
      if (proto.conversation().messages_size() > static_cast<int>(kMessagesMax)) {
        return ParameterError("conversation", absl::StrCat("at most ", kMessagesMax, " messages"));
      }
      Conversation conversation;
      for (const v1::ChatMessage& message : proto.conversation().messages()) {
        conversation.messages.push_back({message.role(), message.content()});
      }
      request.prompt = std::move(conversation);
      break;
    }
    case v1::GenerateRequest::PROMPT_NOT_SET:
      return ParameterError("prompt", "a text, token ids or a conversation is needed");
  }
  RETURN_IF_ERROR(CheckRange("temperature", proto.temperature(), 0.0, 100.0));
  RETURN_IF_ERROR(CheckRange("top_p", proto.top_p(), 0.0, 1.0));
  if (proto.has_max_tokens()) {
    RETURN_IF_ERROR(CheckRange("max_tokens", proto.max_tokens(), 1, 1 << 30));
    request.max_tokens = proto.max_tokens();
  }
  request.sampling = {.temperature = proto.temperature(),
                      .top_k = proto.top_k(),
                      .top_p = proto.top_p() == 0.0f ? 1.0f : proto.top_p()};
  if (proto.has_seed()) request.seed = proto.seed();
  request.stops.assign(proto.stop().begin(), proto.stop().end());
  return request;
}

void AddEnd(const AnswerEnd& end, int64_t block_tokens, v1::GenerateEnd& proto) {
  proto.set_reason(end.reason == EndReason::kLength ? v1::FINISH_REASON_LENGTH
                                                    : v1::FINISH_REASON_STOP);
  proto.set_prompt_tokens(static_cast<uint64_t>(end.prompt_tokens));
  proto.set_output_tokens(static_cast<uint64_t>(end.output_tokens));
  proto.set_cached_tokens(static_cast<uint64_t>(end.reused_tokens));
  for (size_t source = 0; source < kNumBlockSources; ++source) {
    const int64_t blocks = end.load.blocks_by_source[source];
    if (blocks == 0) continue;
    (*proto.mutable_cached_tokens_by_tier())[std::string(BlockSourceName(
        static_cast<BlockSource>(source)))] = static_cast<uint64_t>(blocks * block_tokens);
  }
  for (const auto& [reason, blocks] : end.load.failures) {
    (*proto.mutable_load_failures())[reason] = static_cast<uint64_t>(blocks);
  }
}

absl::Status EndStatus(const AnswerEnd& end) {
  if (end.reason == EndReason::kFailed) return end.status;
  if (end.reason == EndReason::kCancelled) return absl::CancelledError("the request was cancelled");
  return absl::OkStatus();
}

}  // namespace

GenerateCall* GenerateCall::Start(const v1::GenerateRequest& request, int64_t block_tokens,
                                  CompletionService& service, TaskThreads& edge) {
  std::shared_ptr<GenerateCall> call(new GenerateCall(service, block_tokens));
  call->self_ = call;
  absl::StatusOr<CompletionRequest> parsed = FromProto(request);
  if (!parsed.ok()) {
    call->FinishOnce(parsed.status());
  } else if (!edge.Post([call, parsed = *std::move(parsed)] { call->Submit(parsed); })) {
    call->FinishOnce(
        absl::ResourceExhaustedError("too many requests are waiting; try again later"));
  }
  return call.get();
}

GenerateCall* GenerateCall::Refuse(CompletionService& service, const absl::Status& why) {
  std::shared_ptr<GenerateCall> call(new GenerateCall(service, 0));
  call->self_ = call;
  call->FinishOnce(why);
  return call.get();
}

// Holds itself by the answer's callback; OnDone() lets the answer go.
void GenerateCall::Submit(const CompletionRequest& request) {
  absl::StatusOr<std::shared_ptr<AnswerStream>> answer = service_.Start(
      request, Notify::kEachToken, [self = shared_from_this()] { self->SendNews(); });
  if (!answer.ok()) return FinishOnce(answer.status());
  bool was_cancelled = false;
  {
    absl::MutexLock lock(&mutex_);
    answer_ = *answer;
    was_cancelled = is_cancelled_;
  }
  if (was_cancelled) service_.Cancel(**answer);
  SendNews();
}

bool GenerateCall::TakeNews() {
  if (answer_ == nullptr || is_writing_ || has_finished_ || is_last_) return false;
  AnswerStream::News news = answer_->Take();
  if (news.is_empty()) return false;
  message_.Clear();
  message_.set_text(std::move(news.text));
  message_.mutable_token_ids()->Add(news.token_ids.begin(), news.token_ids.end());
  if (news.end.has_value()) {
    is_last_ = true;
    end_status_ = EndStatus(*news.end);
    if (end_status_.ok()) AddEnd(*news.end, block_tokens_, *message_.mutable_end());
  }
  is_writing_ = true;
  return true;
}

// Nothing of gRPC is called under the lock: it may call back at once.
void GenerateCall::SendNews() {
  {
    absl::MutexLock lock(&mutex_);
    if (!TakeNews()) return;
  }
  StartWrite(&message_);
}

void GenerateCall::OnWriteDone(bool ok) {
  absl::Status end_status;
  bool is_over = false;
  {
    absl::MutexLock lock(&mutex_);
    is_writing_ = false;
    is_over = is_last_ || !ok;
    end_status = ok ? end_status_ : absl::CancelledError("the client is gone");
  }
  if (is_over) return FinishOnce(end_status);
  SendNews();
}

void GenerateCall::OnCancel() {
  std::shared_ptr<AnswerStream> answer;
  {
    absl::MutexLock lock(&mutex_);
    is_cancelled_ = true;
    answer = answer_;
  }
  if (answer != nullptr) service_.Cancel(*answer);
}

void GenerateCall::FinishOnce(const absl::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    if (std::exchange(has_finished_, true)) return;
  }
  Finish(ToGrpc(status));
}

void GenerateCall::OnDone() {
  std::shared_ptr<AnswerStream> answer;
  {
    absl::MutexLock lock(&mutex_);
    answer = std::exchange(answer_, nullptr);
  }
  if (answer != nullptr) service_.Cancel(*answer);  // it has ended, or nobody reads it
  self_.reset();
}

}  // namespace kvstore::engine
