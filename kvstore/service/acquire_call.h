// One Acquire: leases a prefix and streams readiness as pages arrive.
//
//   core: Acquire --update--> edge: merge into what waits --one write at a time--> client
// A lease whose first message was not delivered is released; afterwards it is the session's.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <optional>

#include "kvstore/service/call.h"
#include "kvstore/service/resolve.h"
#include "kvstore/v1/kvstore.pb.h"

namespace kvstore::service {

// Updates that arrive while a write is under way are merged: what waits is bounded by the blocks of
// the call.
class AcquireCall final : public grpc::ServerWriteReactor<v1::AcquireResponse>,
                          public std::enable_shared_from_this<AcquireCall> {
 public:
  static grpc::ServerWriteReactor<v1::AcquireResponse>* Start(
      const CallParts& parts, const Caller& caller, const grpc::CallbackServerContext& context,
      const v1::AcquireRequest& request);
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  explicit AcquireCall(const CallParts& parts) : parts_(parts), edge_(parts.edges.Next()) {
    scope_.entered = parts.clock.Now();  // should the call be refused
  }
  absl::Status Prepare(const Caller& caller, const grpc::CallbackServerContext& context,
                       const v1::AcquireRequest& request);
  void StartOnCore(NamespaceKey key, BlockKeys blocks, store::AcquireOptions options);
  void OnUpdate(store::AcquireUpdate update);
  void WriteWaiting();
  void End(const absl::Status& status);
  void Count(absl::StatusCode code);

  const CallParts& parts_;
  Executor& edge_;
  CallScope scope_;
  SessionId session_;
  std::atomic<bool> is_cancelled_{false};
  // Edge thread; read in OnDone(), after the end.
  bool has_ended_ = false;
  bool is_counted_ = false;
  bool is_writing_ = false;
  bool is_first_delivered_ = false;
  bool is_finishing_with_first_ =
      false;  // the first message is also the last: sent together with the status
  LeaseId lease_;
  std::optional<store::AcquireUpdate> waiting_;
  v1::AcquireResponse message_;
  std::shared_ptr<AcquireCall> self_;  // until OnDone()
};

}  // namespace kvstore::service
