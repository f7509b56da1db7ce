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

  // `timeout` is for the first message; readiness may take the client's bulk deadline.
  static void Start(std::shared_ptr<Lease::State> lease, HottestTier hottest,
                    absl::Duration timeout, Done done);

  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

 private:
  explicit AcquireStream(std::shared_ptr<Lease::State> lease) : lease_(std::move(lease)) {}
  void OnFirstMessage();
  void Deliver(absl::Status status);

  const std::shared_ptr<Lease::State>
      lease_;  // shared with the Lease, which may be gone before the stream ends
  grpc::ClientContext context_;
  v1::AcquireRequest request_;
  v1::AcquireResponse message_;
  std::atomic<bool> is_late_{false};  // the first message did not come in time
  std::atomic<bool> has_first_{false};
  grpc::Alarm alarm_;
  Done done_;
  absl::Status broken_;  // a message that is not well-formed
};

}  // namespace kvstore::client
