// One Acquire: leases a prefix and streams readiness as pages arrive.
//
//   core: Acquire --update--> edge: merge into what waits --one write at a time--> client
// A lease whose first message was not delivered is released; afterwards it is the session's.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>

#include "kvstore/service/resolve.h"
#include "kvstore/service/stream_call.h"
#include "kvstore/v1/kvstore.pb.h"

namespace kvstore::service {

// Updates that arrive while a write is under way are merged: what waits is bounded by the blocks of
// the call.
class AcquireCall final
    : public StreamCall<AcquireCall, grpc::ServerWriteReactor<v1::AcquireResponse>> {
 public:
  static grpc::ServerWriteReactor<v1::AcquireResponse>* Start(
      const CallParts& parts, const Caller& caller, const grpc::CallbackServerContext& context,
      const v1::AcquireRequest& request);
  void OnWriteDone(bool ok) override;

 private:
  friend class StreamCall;
  explicit AcquireCall(const CallParts& parts) : StreamCall(parts, Operation::kAcquire) {}
  absl::Status Prepare(const Caller& caller, const grpc::CallbackServerContext& context,
                       const v1::AcquireRequest& request);
  void StartOnCore(NamespaceKey key, BlockKeys blocks, store::AcquireOptions options);
  void OnUpdate(store::AcquireUpdate update);
  void WriteWaiting();
  void OnGone() override;

  SessionId session_;
  bool is_by_slices_ = false;
  // Edge thread.
  bool is_writing_ = false;
  bool is_first_delivered_ = false;
  bool is_finishing_with_first_ =
      false;  // the first message is also the last: sent together with the status
  LeaseId lease_;
  std::optional<store::AcquireUpdate> waiting_;
  v1::AcquireResponse message_;
};

}  // namespace kvstore::service
