// What every call of the gRPC services goes through: who calls, may it, until when; the way to the
// core and back.
//
// A call is pinned to one edge thread, on which its state lives and its reply is written: gRPC's
// threads and the core only post to it.
//   gRPC thread --EnterCall()--> core (TryPost, bounded) --> edge thread of the call --> Finish
//
// A response message may be touched on the edge thread only, and only while the call has not ended:
// gRPC frees it soon after.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "kvstore/service/access_list.h"
#include "kvstore/service/call_gate.h"
#include "kvstore/service/call_times.h"
#include "kvstore/service/caller.h"
#include "kvstore/service/core_queue.h"
#include "kvstore/service/edge_pool.h"
#include "kvstore/service/session_table.h"
#include "kvstore/store/store.h"

namespace kvstore::service {

// What the services of all callers share. All of it outlives them.
struct CallParts {
  store::Store& store;
  Executor& core;  // for completions; calls take their turn:
  CoreQueue& core_queue;
  EdgePool& edges;
  CallGate& gate;
  SessionTable& sessions;
  const AccessTable& access;
  CallTimes& times;
  const Clock& clock;
  absl::Duration call_deadline;  // of calls that carry none
  absl::Duration bulk_deadline;  // of Put, Get, Acquire, Verify that carry none
  absl::Duration lease_time;
};

// No call lasts longer, whatever deadline it carries.
inline constexpr absl::Duration kDeadlineMax = absl::Minutes(10);

enum class CallKind { kControl, kBulk };

struct CallScope {
  std::string tenant;  // of the session, else the one named in metadata, else the caller's own
  std::string salt;    // of that tenant, if the tenants file sets one
  std::optional<SessionRecord> session;
  // When the server itself must end the call: set if gRPC will not, because the client gave no
  // deadline or one beyond kDeadlineMax.
  std::optional<absl::Duration> server_deadline;
  absl::Time entered;
  size_t request_bytes = 0;
  std::string account;  // whose turn the call takes at the core: the tenant's, or the admins'
  CallGate::Ticket ticket;

  // False: CoreIsBusy().
  [[nodiscard]] bool TryPost(CoreQueue& queue, Task task) const {
    return queue.TryPost(account, request_bytes, std::move(task));
  }
};
// Whose part of the gate and of the core's time a call takes. Those of the admin service are counted apart: who floods can
// still be looked at.
enum class Counted { kForTenant, kAsAdmin };
// Errors: ResourceExhausted; PermissionDenied; Unauthenticated and InvalidArgument, metadata.
absl::StatusOr<CallScope> EnterCall(const CallParts& parts, const Caller& caller,
                                    const grpc::CallbackServerContext& context, CallKind kind,
                                    size_t request_bytes, Counted counted = Counted::kForTenant);
// Errors: FailedPrecondition, the call needs a session.
absl::StatusOr<SessionRecord> SessionOf(const CallScope& scope);

// One unary call. Ends exactly once, with what comes first: End(), cancellation, the server's
// deadline.
class UnaryCall final : public grpc::ServerUnaryReactor,
                        public std::enable_shared_from_this<UnaryCall> {
 public:
  static std::shared_ptr<UnaryCall> Start(const CallParts& parts, CallScope scope,
                                          Operation operation);
  // A call that is refused before it starts.
  static grpc::ServerUnaryReactor* Refuse(const absl::Status& status);

  const CallScope& scope() const { return scope_; }
  // The thread that the call is pinned to.
  Executor& edge() const { return edge_; }
  // True once the client has gone: work that has not begun can be skipped. Any thread.
  bool is_cancelled() const { return is_cancelled_.load(std::memory_order_relaxed); }
  // Any thread. `fill` writes the response, on the edge thread, if `status` is OK and the call has
  // not ended. `undo` gives back what the call took, on the core, if the client will not learn of
  // it.
  void End(absl::Status status, Task fill = {}, Task undo = {});
  // Runs `work` on the core; ends the call with ResourceExhausted if the core is behind.
  void PostToCore(Task work);

  void OnCancel() override;
  void OnDone() override;

 private:
  UnaryCall(const CallParts& parts, CallScope scope, Operation operation);

  const CallParts& parts_;
  Executor& edge_;
  CallScope scope_;
  const Operation operation_;
  std::atomic<bool> is_cancelled_{false};
  bool has_ended_ = false;           // edge thread
  Task undo_;                        // edge thread, then OnDone()
  std::shared_ptr<UnaryCall> self_;  // until OnDone()
};

absl::Status CoreIsBusy();

}  // namespace kvstore::service
