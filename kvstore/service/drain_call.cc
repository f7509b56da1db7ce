#include "kvstore/service/drain_call.h"

#include <utility>

#include "kvstore/service/translate.h"

namespace kvstore::service {
namespace {

constexpr absl::Duration kProgressPeriod = absl::Milliseconds(500);

}  // namespace

void WriteDrain(const store::DrainResult& progress, v1::DrainResponse* out) {
  out->set_written_blocks(progress.written_blocks);
  out->set_waiting_blocks(progress.waiting_blocks);
  out->set_memory_only_blocks(progress.memory_only_blocks);
}

grpc::ServerWriteReactor<v1::DrainResponse>* DrainCall::Start(const CallParts& parts,
                                                              const DaemonFacts& facts,
                                                              absl::StatusOr<CallScope> entered) {
  std::shared_ptr<DrainCall> call(new DrainCall(parts, facts));
  call->Hold();
  if (entered.ok()) call->scope_ = *std::move(entered);
  call->EndIfRefused(entered.ok() ? call->Begin() : entered.status());
  return call.get();
}

absl::Status DrainCall::Begin() {
  EndAtServerDeadline("the drain goes on; ask again");
  const bool is_posted = scope_.TryPost(parts_.core_queue, [self = shared_from_this()] {
    self->parts_.store.Drain([self](absl::StatusOr<store::DrainResult> result) {
      self->edge_.Post([self, result = std::move(result)] { self->OnResult(result); });
    });
    // After the store: who sees the daemon drain can rely on its taking no saves.
    self->edge_.Post([self] {
      self->facts_.set_draining(true);
      self->AskLater();
    });
  });
  return is_posted ? absl::OkStatus() : CoreIsBusy();
}

void DrainCall::AskLater() {
  if (has_ended()) return;
  edge_.PostAt(parts_.clock.Now() + kProgressPeriod, [weak = weak_from_this()] {
    const std::shared_ptr<DrainCall> self = weak.lock();
    if (self == nullptr || self->has_ended()) return;
    self->parts_.core.Post([self] {
      self->edge_.Post(
          [self, progress = self->parts_.store.drain_progress()] { self->OnProgress(progress); });
    });
  });
}

void DrainCall::OnProgress(const store::DrainResult& progress) {
  if (has_ended() || has_result_) return;
  if (!is_writing_) {  // a client that does not read misses some
    message_.Clear();
    WriteDrain(progress, &message_);
    is_writing_ = true;
    StartWrite(&message_);
  }
  AskLater();
}

void DrainCall::OnResult(const absl::StatusOr<store::DrainResult>& result) {
  if (!result.ok()) return End(result.status());
  has_result_ = true;
  message_last_.set_is_last(true);
  WriteDrain(*result, &message_last_);
  WriteLast();
}

void DrainCall::WriteLast() {
  if (!has_result_ || is_writing_ || !TakeEnd(absl::StatusCode::kOk)) return;
  StartWriteAndFinish(&message_last_, grpc::WriteOptions(), grpc::Status::OK);
}

void DrainCall::OnWriteDone(bool ok) {
  edge_.Post([self = shared_from_this(), ok] {
    self->is_writing_ = false;
    if (!ok) return self->End(ClientHasGone());
    self->WriteLast();
  });
}

}  // namespace kvstore::service
