// One Drain call: begins the drain on the core, tells how far it has come twice a second, and ends
// with its result. The drain itself goes on when the client goes.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>

#include "kvstore/service/daemon_facts.h"
#include "kvstore/service/stream_call.h"
#include "kvstore/v1/admin.pb.h"

namespace kvstore::service {

void WriteDrain(const store::DrainResult& progress, v1::DrainResponse* out);

class DrainCall final : public StreamCall<DrainCall, grpc::ServerWriteReactor<v1::DrainResponse>> {
 public:
  // `facts` outlives the call. A call that may not enter ends with the reason.
  static grpc::ServerWriteReactor<v1::DrainResponse>* Start(const CallParts& parts,
                                                            const DaemonFacts& facts,
                                                            absl::StatusOr<CallScope> entered);
  void OnWriteDone(bool ok) override;

 private:
  friend class StreamCall;
  DrainCall(const CallParts& parts, const DaemonFacts& facts)
      : StreamCall(parts, Operation::kAdmin), facts_(facts) {}
  absl::Status Begin();
  // Edge thread.
  void AskLater();
  void OnProgress(const store::DrainResult& progress);
  void OnResult(const absl::StatusOr<store::DrainResult>& result);
  void WriteLast();

  const DaemonFacts& facts_;
  // Edge thread.
  bool is_writing_ = false;
  bool has_result_ = false;
  v1::DrainResponse message_;
  v1::DrainResponse message_last_;
};

}  // namespace kvstore::service
