// The client's side of one Acquire call: delivers the lease with the first message, then fills it
// as readiness arrives.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "kvstore/client/lease_state.h"

namespace kvstore::client {

// Owns itself until gRPC is done with it. `done` runs once, on a gRPC thread.
class AcquireStream final : public grpc::ClientReadReactor<v1::AcquireResponse> {
 public:
  using Done = absl::AnyInvocable<void(absl::StatusOr<std::shared_ptr<Lease::State>>)>;

  // Who ends a call whose first message does not come in time: an alarm, or the caller by
  // Lease::State::GiveUp(). An alarm costs as much as a small call.
  enum class Watch { kAlarm, kCaller };
  // `timeout` is for the first message; readiness may take the client's bulk deadline.
  static void Start(std::shared_ptr<Lease::State> lease, AcquireOptions options,
                    absl::Duration timeout, Watch watch, Done done);

  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  explicit AcquireStream(std::shared_ptr<Lease::State> lease) : lease_(std::move(lease)) {}
  void SetAlarm(absl::Duration timeout);
  void CancelAlarm();
  void Deliver(absl::Status status);

  const std::shared_ptr<Lease::State>
      lease_;  // shared with the Lease, which may be gone before the stream ends
  grpc::ClientContext context_;
  v1::AcquireRequest request_;
  v1::AcquireResponse message_;
  std::atomic<bool> has_first_{false};
  std::unique_ptr<grpc::Alarm> alarm_;  // null: the caller watches
  Done done_;
  absl::Status broken_;  // a message that is not well-formed
};

}  // namespace kvstore::client
