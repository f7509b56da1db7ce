#include "tools/kvctl/daemon_calls.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <string>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/client/channel.h"
#include "kvstore/v1/admin.grpc.pb.h"
#include "kvstore/v1/kvstore.grpc.pb.h"
#include "tools/kvctl/stall_guard.h"

namespace kvstore::kvctl {
namespace {

constexpr uint64_t kPieceBytes = 1 << 20;  // the most that one message may carry
constexpr auto kStreamDeadline =
    std::chrono::hours(24);  // a bound only; StallGuard is the deadline

using client::FromGrpc;

absl::Status NoAnswer(absl::Duration timeout) {
  return absl::DeadlineExceededError(
      absl::StrCat("no answer from the daemon for ", absl::FormatDuration(timeout)));
}

// Calls wait for the connection: main() has seen that somebody listens, and a busy or stopped
// daemon is late, not gone. With TLS they do not: a handshake that failed fails again, and gRPC's
// reason is of use.
struct Patience {
  absl::Duration timeout;
  bool waits_for_connection = true;
};

// One stream: its context, cancelled when it stalls.
class GuardedStream {
 public:
  explicit GuardedStream(const Patience& patience)
      : timeout_(patience.timeout), guard_(timeout_, [this] { context_.TryCancel(); }) {
    context_.set_deadline(std::chrono::system_clock::now() + kStreamDeadline);
    context_.set_wait_for_ready(patience.waits_for_connection);
  }
  grpc::ClientContext* context() { return &context_; }
  void Progress() { guard_.Progress(); }
  void Cancel() { context_.TryCancel(); }
  // The status of the stream: ours where we cancelled it.
  absl::Status Result(const grpc::Status& status) const {
    if (guard_.has_fired() && status.error_code() == grpc::CANCELLED) {
      return NoAnswer(timeout_);
    }
    return FromGrpc(status);
  }

 private:
  const absl::Duration timeout_;
  grpc::ClientContext context_;
  StallGuard guard_;  // last: its thread ends before the context does
};

class GrpcCalls final : public DaemonCalls {
 public:
  GrpcCalls(const std::shared_ptr<grpc::Channel>& channel, const Patience& patience)
      : patience_(patience),
        admin_(v1::Admin::NewStub(channel)),
        store_(v1::KvStore::NewStub(channel)) {}

  absl::StatusOr<v1::StatusResponse> Status() override {
    return Unary<v1::StatusResponse>(*admin_, &v1::Admin::Stub::Status, v1::StatusRequest());
  }
  absl::StatusOr<v1::ConfigResponse> Config() override {
    return Unary<v1::ConfigResponse>(*admin_, &v1::Admin::Stub::Config, v1::ConfigRequest());
  }
  absl::StatusOr<v1::NamespacesResponse> Namespaces() override {
    return Unary<v1::NamespacesResponse>(*admin_, &v1::Admin::Stub::Namespaces,
                                         v1::NamespacesRequest());
  }
  absl::StatusOr<v1::ListResponse> List(const v1::ListRequest& request) override {
    return Unary<v1::ListResponse>(*admin_, &v1::Admin::Stub::List, request);
  }
  absl::StatusOr<v1::TenantsResponse> Tenants(const v1::TenantsRequest& request) override {
    return Unary<v1::TenantsResponse>(*admin_, &v1::Admin::Stub::Tenants, request);
  }
  absl::StatusOr<v1::SetQuotaResponse> SetQuota(const v1::SetQuotaRequest& request) override {
    return Unary<v1::SetQuotaResponse>(*admin_, &v1::Admin::Stub::SetQuota, request);
  }
  absl::StatusOr<v1::OpenNamespaceResponse> OpenNamespace(
      const v1::OpenNamespaceRequest& request) override {
    return Unary<v1::OpenNamespaceResponse>(*store_, &v1::KvStore::Stub::OpenNamespace, request);
  }
  absl::StatusOr<v1::OpenNamespaceResponse> FindNamespace(
      const v1::FindNamespaceRequest& request) override {
    return Unary<v1::OpenNamespaceResponse>(*store_, &v1::KvStore::Stub::FindNamespace, request);
  }
  absl::StatusOr<v1::EvictResponse> Evict(const v1::EvictRequest& request) override {
    return Unary<v1::EvictResponse>(*admin_, &v1::Admin::Stub::Evict, request);
  }
  absl::StatusOr<v1::MatchResponse> Match(const v1::MatchRequest& request) override {
    return Unary<v1::MatchResponse>(*store_, &v1::KvStore::Stub::Match, request);
  }
  absl::StatusOr<v1::ClearResponse> Clear(const v1::ClearRequest& request) override {
    return Unary<v1::ClearResponse>(*store_, &v1::KvStore::Stub::Clear, request);
  }

  absl::StatusOr<v1::ResumeResponse> Resume() override {
    return Unary<v1::ResumeResponse>(*admin_, &v1::Admin::Stub::Resume, v1::ResumeRequest());
  }

  absl::StatusOr<v1::VerifyResponse> Verify(
      const v1::VerifyRequest& request,
      const std::function<void(const v1::VerifyResponse&)>& on_progress) override {
    GuardedStream stream(patience_);
    return ReadToLast<v1::VerifyResponse>(stream, *admin_->Verify(stream.context(), request),
                                          on_progress);
  }
  absl::StatusOr<v1::DrainResponse> Drain(
      const std::function<void(const v1::DrainResponse&)>& on_progress) override {
    GuardedStream stream(patience_);
    return ReadToLast<v1::DrainResponse>(
        stream, *admin_->Drain(stream.context(), v1::DrainRequest()), on_progress);
  }

  absl::StatusOr<v1::PutResponse> Put(
      const v1::PutRequest::Header& header, uint64_t total_bytes,
      const std::function<absl::Status(std::span<std::byte>)>& fill) override {
    GuardedStream stream(patience_);
    v1::PutResponse response;
    const auto writer = store_->Put(stream.context(), &response);
    v1::PutRequest message;
    *message.mutable_header() = header;
    bool is_open = writer->Write(message);
    for (uint64_t sent = 0; is_open && sent < total_bytes;) {
      stream.Progress();
      std::string& data = *message.mutable_data();
      data.resize(std::min(kPieceBytes, total_bytes - sent));
      if (absl::Status status = fill(std::as_writable_bytes(std::span(data))); !status.ok()) {
        stream.Cancel();
        writer->Finish().error_code();
        return status;
      }
      sent += data.size();
      is_open = writer->Write(message);
    }
    writer->WritesDone();
    RETURN_IF_ERROR(stream.Result(writer->Finish()));
    return response;
  }

  absl::Status Get(const v1::GetRequest& request,
                   const std::function<absl::Status(const v1::GetResponse&)>& on_message) override {
    GuardedStream stream(patience_);
    const auto reader = store_->Get(stream.context(), request);
    v1::GetResponse message;
    while (reader->Read(&message)) {
      stream.Progress();
      if (absl::Status status = on_message(message); !status.ok()) {
        stream.Cancel();
        reader->Finish().error_code();
        return status;
      }
    }
    return stream.Result(reader->Finish());
  }

 private:
  // Passes each message on; the last one is the result.
  template <typename Response>
  static absl::StatusOr<Response> ReadToLast(
      GuardedStream& stream, grpc::ClientReader<Response>& reader,
      const std::function<void(const Response&)>& on_progress) {
    Response message;
    while (reader.Read(&message)) {
      stream.Progress();
      on_progress(message);
    }
    RETURN_IF_ERROR(stream.Result(reader.Finish()));
    if (!message.is_last()) return absl::UnavailableError("the daemon ended before its result");
    return message;
  }

  template <typename Response, typename Stub, typename Request>
  absl::StatusOr<Response> Unary(Stub& stub,
                                 grpc::Status (Stub::*call)(grpc::ClientContext*, const Request&,
                                                            Response*),
                                 const Request& request) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + patience_.timeout));
    context.set_wait_for_ready(patience_.waits_for_connection);
    Response response;
    const absl::Status status = FromGrpc((stub.*call)(&context, request, &response));
    if (absl::IsDeadlineExceeded(status)) return NoAnswer(patience_.timeout);
    if (!status.ok()) return status;
    return response;
  }

  const Patience patience_;
  const std::unique_ptr<v1::Admin::Stub> admin_;
  const std::unique_ptr<v1::KvStore::Stub> store_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DaemonCalls>> DaemonCalls::Create(
    const std::string& target, const std::optional<client::TlsFiles>& tls, absl::Duration timeout) {
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, client::MakeChannel(target, tls));
  return std::make_unique<GrpcCalls>(
      channel, Patience{.timeout = timeout, .waits_for_connection = !tls.has_value()});
}

}  // namespace kvstore::kvctl
