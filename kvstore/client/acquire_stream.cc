#include "kvstore/client/acquire_stream.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace kvstore::client {

void AcquireStream::Start(std::shared_ptr<Lease::State> lease, HottestTier hottest,
                          absl::Duration timeout, Done done) {
  Connection& connection = *lease->connection;
  auto* stream = new AcquireStream(lease);
  stream->done_ = std::move(done);
  v1::AcquireRequest& request = stream->request_;
  request.mutable_namespace_()->set_fingerprint(lease->fingerprint.bytes.data(),
                                                lease->fingerprint.bytes.size());
  request.set_hashes(lease->hashes.data(), lease->hashes.size() * sizeof(BlockHash));
  request.set_can_read_gpu(hottest == HottestTier::kGpu);
  connection.Prepare(&stream->context_, lease->session.get(),
                     std::max(timeout, connection.options().bulk_deadline));
  if (!connection.BeginCall(&stream->context_)) {
    lease->OnStreamEnd(absl::CancelledError("the client is being destroyed"));
    stream->Deliver(absl::CancelledError("the client is being destroyed"));
    delete stream;
    return;
  }
  connection.stub().async()->Acquire(&stream->context_, &request, stream);
  stream->StartRead(&stream->message_);
  // Held until the alarm is decided: it may go off while the stream ends.
  stream->AddHold();
  stream->alarm_.Set(std::chrono::system_clock::now() + absl::ToChronoMicroseconds(timeout),
                     [stream](bool went_off) {
                       if (went_off && !stream->has_first_.load(std::memory_order_acquire)) {
                         stream->is_late_.store(true, std::memory_order_release);
                         stream->context_.TryCancel();
                       }
                       stream->RemoveHold();
                     });
  stream->StartCall();
}

void AcquireStream::OnReadDone(bool ok) {
  if (!ok) {
    if (!has_first_.load(std::memory_order_relaxed)) alarm_.Cancel();
    return;  // OnDone() follows
  }
  broken_ = lease_->OnMessage(message_);
  if (!broken_.ok()) {
    alarm_.Cancel();
    context_.TryCancel();
    return;
  }
  const bool is_last = message_.is_last();
  if (!has_first_.load(std::memory_order_relaxed)) {
    if (is_last) lease_->OnStreamEnd(absl::OkStatus());
    OnFirstMessage();
  }
  message_.Clear();
  StartRead(&message_);
}

void AcquireStream::OnFirstMessage() {
  has_first_.store(true, std::memory_order_release);
  alarm_.Cancel();
  lease_->SetStream(&context_);
  Deliver(absl::OkStatus());
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
  absl::Status why = broken_.ok() ? lease_->connection->StatusOf(status, lease_->session) : broken_;
  if (is_late_.load(std::memory_order_acquire))
    why = absl::DeadlineExceededError("the daemon did not answer Acquire in time");
  lease_->OnStreamEnd(why);
  Deliver(why.ok() ? absl::UnavailableError("Acquire ended without an answer") : why);
  lease_->connection->EndCall(&context_);
  delete this;
}

}  // namespace kvstore::client
