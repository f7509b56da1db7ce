#include "kvstore/client/acquire_stream.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace kvstore::client {

void AcquireStream::Start(std::shared_ptr<Lease::State> lease, AcquireOptions options,
                          absl::Duration timeout, Watch watch, Done done) {
  Connection& connection = *lease->connection;
  auto* stream = new AcquireStream(lease);
  stream->done_ = std::move(done);
  v1::AcquireRequest& request = stream->request_;
  request.mutable_namespace_()->set_fingerprint(lease->fingerprint.bytes.data(),
                                                lease->fingerprint.bytes.size());
  request.set_hashes(lease->hashes.data(), lease->hashes.size() * sizeof(BlockHash));
  request.set_can_read_gpu(options.hottest == HottestTier::kGpu);
  request.set_by_slices(options.readiness == Readiness::kBySlice);
  connection.Prepare(&stream->context_, lease->session.get(),
                     std::max(timeout, connection.options().bulk_deadline));
  if (!connection.BeginCall(&stream->context_)) {
    lease->OnStreamEnd(absl::CancelledError("the client is being destroyed"));
    stream->Deliver(absl::CancelledError("the client is being destroyed"));
    delete stream;
    return;
  }
  lease->SetStream(&stream->context_);
  connection.stub().async()->Acquire(&stream->context_, &request, stream);
  stream->StartRead(&stream->message_);
  if (watch == Watch::kAlarm) stream->SetAlarm(timeout);
  stream->StartCall();
}

void AcquireStream::SetAlarm(absl::Duration timeout) {
  // Held until the alarm is decided: it may go off while the stream ends.
  AddHold();
  alarm_ = std::make_unique<grpc::Alarm>();
  alarm_->Set(std::chrono::system_clock::now() + absl::ToChronoMicroseconds(timeout),
              [this](bool went_off) {
                const CallbackScope scope;
                if (went_off && !has_first_.load(std::memory_order_acquire)) lease_->GiveUp();
                RemoveHold();
              });
}

void AcquireStream::CancelAlarm() {
  if (alarm_ != nullptr) alarm_->Cancel();
}

void AcquireStream::OnReadDone(bool ok) {
  const CallbackScope scope;
  const bool is_first = !has_first_.load(std::memory_order_relaxed);
  if (!ok) {
    if (is_first) CancelAlarm();
    return;  // OnDone() follows
  }
  broken_ = lease_->OnMessage(message_);
  if (!broken_.ok()) {
    CancelAlarm();
    context_.TryCancel();
    return;
  }
  if (message_.is_last()) lease_->OnStreamEnd(absl::OkStatus());
  if (is_first) {
    has_first_.store(true, std::memory_order_release);
    CancelAlarm();
    Deliver(absl::OkStatus());
  }
  message_.Clear();
  StartRead(&message_);
}

void AcquireStream::Deliver(absl::Status status) {
  Done done = std::move(done_);
  done_ = nullptr;
  if (!done) return;
  if (status.ok()) {
    done(lease_);
  } else {
    done(std::move(status));
  }
}

void AcquireStream::OnDone(const grpc::Status& status) {
  const CallbackScope scope;
  absl::Status why = broken_.ok() ? lease_->connection->StatusOf(status, lease_->session) : broken_;
  if (lease_->is_given_up())
    why = absl::DeadlineExceededError("the daemon did not answer Acquire in time");
  lease_->OnStreamEnd(why);
  Deliver(why.ok() ? absl::UnavailableError("Acquire ended without an answer") : why);
  lease_->connection->EndCall(&context_);
  delete this;
}

}  // namespace kvstore::client
