#include "kvstore/service/acquire_call.h"

#include <utility>

#include "kvstore/base/status_macros.h"
#include "kvstore/service/translate.h"

namespace kvstore::service {

grpc::ServerWriteReactor<v1::AcquireResponse>* AcquireCall::Start(
    const CallParts& parts, const Caller& caller, const grpc::CallbackServerContext& context,
    const v1::AcquireRequest& request) {
  std::shared_ptr<AcquireCall> call(new AcquireCall(parts));
  call->Hold();
  call->EndIfRefused(call->Prepare(caller, context, request));
  return call.get();
}

absl::Status AcquireCall::Prepare(const Caller& caller, const grpc::CallbackServerContext& context,
                                  const v1::AcquireRequest& request) {
  ASSIGN_OR_RETURN(scope_,
                   EnterCall(parts_, caller, context, CallKind::kBulk, request.ByteSizeLong()));
  ASSIGN_OR_RETURN(SessionRecord session, SessionOf(scope_));
  session_ = session.id;
  ASSIGN_OR_RETURN(NamespaceKey key, ReadNamespaceRef(request.namespace_(), scope_.salt));
  BlockKeys blocks;
  ASSIGN_OR_RETURN(blocks.hashes, ReadHashes(request.hashes()));
  is_by_slices_ = request.by_slices();
  EndAtServerDeadline();
  const store::AcquireOptions options{.can_read_gpu = request.can_read_gpu(),
                                      .by_slices = request.by_slices()};
  const bool is_posted = scope_.TryPost(
      parts_.core_queue,
      [self = shared_from_this(), key = std::move(key), blocks = std::move(blocks),
       options]() mutable { self->StartOnCore(std::move(key), std::move(blocks), options); });
  return is_posted ? absl::OkStatus() : CoreIsBusy();
}

void AcquireCall::StartOnCore(NamespaceKey key, BlockKeys blocks, store::AcquireOptions options) {
  if (is_cancelled()) return;
  ResolveBlocks(parts_.store, parts_.core, edge_, scope_.tenant, std::move(key), std::move(blocks),
                [self = shared_from_this(), options](absl::StatusOr<ResolvedBlocks> resolved) {
                  if (!resolved.ok()) {
                    self->edge_.Post([self, status = resolved.status()] { self->End(status); });
                    return;
                  }
                  // The store keeps the callback while pages are on their way, and with it this
                  // call.
                  self->parts_.store.Acquire(self->session_, resolved->ns.id, resolved->hashes,
                                             options, [self](const store::AcquireUpdate& update) {
                                               self->edge_.Post([self, update]() mutable {
                                                 self->OnUpdate(std::move(update));
                                               });
                                             });
                });
}

void AcquireCall::OnUpdate(store::AcquireUpdate update) {
  if (update.is_first) {
    const bool is_refused = update.is_last && !update.status.ok() && update.matched_blocks == 0 &&
                            update.lease == LeaseId();
    if (is_refused) return End(update.status);
    lease_ = update.lease;
    if (has_ended()) {
      // Cancelled while the core was at it.
      if (lease_ != LeaseId())
        parts_.core.Post([self = shared_from_this()] {
          self->parts_.store.Release(self->session_, self->lease_, {}).IgnoreError();
        });
      return;
    }
  }
  if (has_ended()) return;
  if (!waiting_.has_value()) {
    waiting_ = std::move(update);
  } else {
    waiting_->is_last = update.is_last;
    waiting_->matched_blocks = update.matched_blocks;
    waiting_->ready.insert(waiting_->ready.end(), update.ready.begin(), update.ready.end());
    if (is_by_slices_) waiting_->KeepLatest();
    if (!update.status.ok()) waiting_->status = std::move(update.status);
  }
  WriteWaiting();
}

void AcquireCall::WriteWaiting() {
  if (is_writing_ || !waiting_.has_value() || has_ended()) return;
  message_.Clear();
  WriteAcquireUpdate(*waiting_, &message_);
  const bool is_first = waiting_->is_first;
  const bool is_last = waiting_->is_last;
  waiting_.reset();
  if (is_first) Count(absl::StatusCode::kOk);
  if (is_last) {
    if (!TakeEnd(absl::StatusCode::kOk)) return;
    is_finishing_with_first_ = is_first;
    StartWriteAndFinish(&message_, grpc::WriteOptions(), grpc::Status::OK);
    return;
  }
  is_writing_ = true;
  StartWrite(&message_);
}

void AcquireCall::OnWriteDone(bool ok) {
  edge_.Post([self = shared_from_this(), ok] {
    self->is_writing_ = false;
    if (ok) self->is_first_delivered_ = true;
    if (!ok) return self->End(ClientHasGone());
    self->WriteWaiting();
  });
}

void AcquireCall::OnGone() {
  const bool is_delivered = is_first_delivered_ || (is_finishing_with_first_ && !is_cancelled());
  if (lease_ == LeaseId() || is_delivered) return;
  parts_.core.Post([&store = parts_.store, session = session_, lease = lease_] {
    store.Release(session, lease, {}).IgnoreError();
  });
}

}  // namespace kvstore::service
