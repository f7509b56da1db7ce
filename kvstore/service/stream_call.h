// What the streaming calls have in common: each lives on one edge thread until gRPC is done with it
// and ends exactly once, with what comes first: its own end, cancellation, the server's deadline.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "kvstore/service/call.h"
#include "kvstore/service/translate.h"

namespace kvstore::service {

// A call `Derived`, made with std::shared_ptr, whose reactor is `Reactor`. Unless said otherwise,
// everything runs on the edge thread.
template <typename Derived, typename Reactor>
class StreamCall : public Reactor, public std::enable_shared_from_this<Derived> {
 public:
  // gRPC thread.
  void OnCancel() final {
    is_cancelled_.store(true, std::memory_order_relaxed);
    edge_.Post([self = this->shared_from_this()] { self->End(ClientHasGone()); });
  }
  // gRPC thread. Behind steps that were posted before the end, such as an OnWriteDone().
  void OnDone() final {
    edge_.Post([self = std::move(self_)] {
      self->OnGone();
      self->scope_.ticket.Release();
    });
  }

 protected:
  StreamCall(const CallParts& parts, Operation operation)
      : parts_(parts), edge_(parts.edges.Next()), operation_(operation) {
    scope_.entered = parts.clock.Now();  // should the call be refused
  }
  static absl::Status ClientHasGone() { return absl::CancelledError("the client has gone"); }

  // gRPC thread, first of all: the call lives until OnDone().
  void Hold() { self_ = this->shared_from_this(); }
  // gRPC thread. Errors of what comes before the call's work end it.
  void EndIfRefused(const absl::Status& status) {
    if (!status.ok()) edge_.Post([self = this->shared_from_this(), status] { self->End(status); });
  }
  // gRPC thread, once scope_ is known. The timer holds nothing: calls end long before it.
  void EndAtServerDeadline(const char* what = "the server's own deadline for this call") {
    if (!scope_.server_deadline.has_value()) return;
    edge_.Post([weak = this->weak_from_this(), &edge = edge_, what,
                when = parts_.clock.Now() + *scope_.server_deadline] {
      edge.PostAt(when, [weak, what] {
        if (auto late = weak.lock()) late->End(absl::DeadlineExceededError(what));
      });
    });
  }

  void End(const absl::Status& status) {
    if (TakeEnd(status.code())) this->Finish(ToGrpc(status));
  }
  // True once: the caller ends the call in a way of its own.
  [[nodiscard]] bool TakeEnd(absl::StatusCode code) {
    if (std::exchange(has_ended_, true)) return false;
    Count(code);
    return true;
  }
  // The time until here is what the call took; counted once.
  void Count(absl::StatusCode code) {
    if (std::exchange(is_counted_, true)) return;
    parts_.times.Record(operation_, code, parts_.clock.Now() - scope_.entered);
  }
  bool has_ended() const { return has_ended_; }
  bool is_cancelled() const { return is_cancelled_.load(std::memory_order_relaxed); }  // any thread

  // gRPC has let go of the call.
  virtual void OnGone() {}

  const CallParts& parts_;
  Executor& edge_;
  CallScope scope_;

 private:
  const Operation operation_;
  std::atomic<bool> is_cancelled_{false};
  bool has_ended_ = false;
  bool is_counted_ = false;
  std::shared_ptr<Derived> self_;  // until OnDone()
};

// A session for the time of one call. It is closed when it is known and the call is done, whichever
// comes last.
class SessionOfCall {
 public:
  explicit SessionOfCall(const CallParts& parts) : parts_(parts) {}
  void Opened(SessionId id) {
    id_ = id;
    CloseIfDone();
  }
  void CallIsDone() {
    is_call_done_ = true;
    CloseIfDone();
  }
  SessionId id() const { return id_; }  // after Opened()

 private:
  void CloseIfDone() {
    if (!is_call_done_ || id_ == SessionId()) return;
    parts_.core.Post([&store = parts_.store, id = id_] { store.CloseSession(id); });
  }

  const CallParts& parts_;
  SessionId id_;
  bool is_call_done_ = false;
};

}  // namespace kvstore::service
