#include "kvstore/service/call.h"

#include <chrono>

#include "absl/hash/hash.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/service/translate.h"

namespace kvstore::service {
namespace {

constexpr char kSessionMetadata[] = "kvstore-session-bin";
constexpr char kTenantMetadata[] = "kvstore-tenant";
constexpr char kAdminAccount[] = "";  // no tenant has this name

// Empty if there is none. Errors: InvalidArgument, given twice.
absl::StatusOr<std::string_view> MetadataValue(const grpc::CallbackServerContext& context,
                                               const char* key) {
  const auto& metadata = context.client_metadata();
  const auto [first, last] = metadata.equal_range(key);
  if (first == last) return std::string_view();
  if (std::next(first) != last)
    return absl::InvalidArgumentError(std::string(key) + ": given twice");
  return std::string_view(first->second.data(), first->second.size());
}

std::optional<absl::Duration> ServerDeadline(const CallParts& parts,
                                             const grpc::CallbackServerContext& context,
                                             CallKind kind) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) {
    return kind == CallKind::kBulk ? parts.bulk_deadline : parts.call_deadline;
  }
  if (deadline > std::chrono::system_clock::now() + absl::ToChronoSeconds(kDeadlineMax))
    return kDeadlineMax;
  return std::nullopt;
}

}  // namespace

absl::StatusOr<CallScope> EnterCall(const CallParts& parts, const Caller& caller,
                                    const grpc::CallbackServerContext& context, CallKind kind,
                                    size_t request_bytes, Counted counted) {
  CallScope scope;
  ASSIGN_OR_RETURN(std::string_view named_tenant, MetadataValue(context, kTenantMetadata));
  ASSIGN_OR_RETURN(scope.tenant, caller.TenantFor(named_tenant));
  ASSIGN_OR_RETURN(std::string_view token, MetadataValue(context, kSessionMetadata));
  if (!token.empty()) {
    ASSIGN_OR_RETURN(scope.session, parts.sessions.Find(token, caller.uid));
    if (!named_tenant.empty() && scope.tenant != scope.session->tenant) {
      return absl::InvalidArgumentError("kvstore-tenant: another tenant than the session's");
    }
    scope.tenant = scope.session->tenant;
  }
  scope.salt = parts.access.Now()->SaltOf(scope.tenant);
  scope.server_deadline = ServerDeadline(parts, context, kind);
  scope.entered = parts.clock.Now();
  scope.request_bytes = request_bytes;
  scope.account = counted == Counted::kAsAdmin ? kAdminAccount : scope.tenant;
  ASSIGN_OR_RETURN(scope.ticket, parts.gate.Admit(scope.account, request_bytes));
  return scope;
}

absl::StatusOr<SessionRecord> SessionOf(const CallScope& scope) {
  if (scope.session.has_value()) return *scope.session;
  return absl::FailedPreconditionError(
      "this call needs a session: open one on the memory socket and name it in "
      "kvstore-session-bin");
}

absl::Status CoreIsBusy() {
  return absl::ResourceExhaustedError(
      "the core is behind: limits.core_queue calls wait for it; wait and try again");
}

UnaryCall::UnaryCall(const CallParts& parts, CallScope scope, Operation operation)
    : parts_(parts), edge_(parts.edges.Next()), scope_(std::move(scope)), operation_(operation) {}

std::shared_ptr<UnaryCall> UnaryCall::Start(const CallParts& parts, CallScope scope,
                                            Operation operation) {
  std::shared_ptr<UnaryCall> call(new UnaryCall(parts, std::move(scope), operation));
  call->self_ = call;
  if (call->scope_.server_deadline.has_value()) {
    call->edge_.Post([weak = std::weak_ptr<UnaryCall>(call), &edge = call->edge_,
                      &clock = parts.clock, after = *call->scope_.server_deadline] {
      edge.PostAt(clock.Now() + after, [weak] {
        if (auto late = weak.lock())
          late->End(absl::DeadlineExceededError("the server's own deadline for this call"));
      });
    });
  }
  return call;
}

grpc::ServerUnaryReactor* UnaryCall::Refuse(const absl::Status& status) {
  class Refusal final : public grpc::ServerUnaryReactor {
   public:
    explicit Refusal(const absl::Status& why) { Finish(ToGrpc(why)); }
    void OnDone() override { delete this; }
  };
  return new Refusal(status);
}

void UnaryCall::End(absl::Status status, Task fill, Task undo) {
  edge_.Post([self = shared_from_this(), status = std::move(status), fill = std::move(fill),
              undo = std::move(undo)]() mutable {
    if (self->has_ended_) {
      if (undo) self->parts_.core.Post(std::move(undo));
      return;
    }
    self->has_ended_ = true;
    self->undo_ = std::move(undo);
    if (status.ok() && fill) fill();
    self->parts_.times.Record(self->operation_, status.code(),
                              self->parts_.clock.Now() - self->scope_.entered);
    self->Finish(ToGrpc(status));
  });
}

void UnaryCall::PostToCore(Task work) {
  if (!scope_.TryPost(parts_.core_queue, std::move(work))) End(CoreIsBusy());
}

void UnaryCall::OnCancel() {
  is_cancelled_.store(true, std::memory_order_relaxed);
  End(absl::CancelledError("the client has gone"));
}

void UnaryCall::OnDone() {
  // Finish() was called on the edge thread before this: undo_ is complete.
  if (is_cancelled() && undo_) parts_.core.Post(std::move(undo_));
  scope_.ticket.Release();
  self_.reset();
}

}  // namespace kvstore::service
