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
                                                              CallScope scope) {
  std::shared_ptr<DrainCall> call(new DrainCall(parts, facts, std::move(scope)));
  call->self_ = call;
  call->Begin();
  return call.get();
}

grpc::ServerWriteReactor<v1::DrainResponse>* DrainCall::Refuse(const absl::Status& status) {
  class Refusal final : public grpc::ServerWriteReactor<v1::DrainResponse> {
   public:
    explicit Refusal(const absl::Status& why) { Finish(ToGrpc(why)); }
    void OnDone() override { delete this; }
  };
  return new Refusal(status);
}

void DrainCall::Begin() {
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
  edge_.Post([self = shared_from_this(), is_posted] {
    if (!is_posted) return self->End(CoreIsBusy());
    if (!self->scope_.server_deadline.has_value()) return;
    self->edge_.PostAt(self->parts_.clock.Now() + *self->scope_.server_deadline,
                       [weak = self->weak_from_this()] {
                         if (auto late = weak.lock())
                           late->End(absl::DeadlineExceededError("the drain goes on; ask again"));
                       });
  });
}

void DrainCall::AskLater() {
  if (has_ended_) return;
  edge_.PostAt(parts_.clock.Now() + kProgressPeriod, [weak = weak_from_this()] {
    const std::shared_ptr<DrainCall> self = weak.lock();
    if (self == nullptr || self->has_ended_) return;
    self->parts_.core.Post([self] {
      self->edge_.Post(
          [self, progress = self->parts_.store.drain_progress()] { self->OnProgress(progress); });
    });
  });
}

void DrainCall::OnProgress(const store::DrainResult& progress) {
  if (has_ended_ || has_result_) return;
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
  if (has_ended_ || !has_result_ || is_writing_) return;
  has_ended_ = true;
  Count(absl::StatusCode::kOk);
  StartWriteAndFinish(&message_last_, grpc::WriteOptions(), grpc::Status::OK);
}

void DrainCall::End(const absl::Status& status) {
  if (has_ended_) return;
  has_ended_ = true;
  Count(status.code());
  Finish(ToGrpc(status));
}

void DrainCall::Count(absl::StatusCode code) {
  parts_.times.Record(Operation::kAdmin, code, parts_.clock.Now() - scope_.entered);
}

void DrainCall::OnWriteDone(bool ok) {
  edge_.Post([self = shared_from_this(), ok] {
    self->is_writing_ = false;
    if (!ok) return self->End(absl::CancelledError("the client has gone"));
    self->WriteLast();
  });
}

void DrainCall::OnCancel() {
  edge_.Post(
      [self = shared_from_this()] { self->End(absl::CancelledError("the client has gone")); });
}

void DrainCall::OnDone() {
  // On the edge thread, behind steps that were posted before the end.
  edge_.Post([self = std::move(self_)] { self->scope_.ticket.Release(); });
}

}  // namespace kvstore::service
