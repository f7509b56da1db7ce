// One Drain call: begins the drain on the core, tells how far it has come twice a second, and ends
// with its result. The drain itself goes on when the client goes.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>

#include "kvstore/service/call.h"
#include "kvstore/service/daemon_facts.h"
#include "kvstore/v1/admin.pb.h"

namespace kvstore::service {

void WriteDrain(const store::DrainResult& progress, v1::DrainResponse* out);

class DrainCall final : public grpc::ServerWriteReactor<v1::DrainResponse>,
                        public std::enable_shared_from_this<DrainCall> {
 public:
  // `facts` outlives the call.
  static grpc::ServerWriteReactor<v1::DrainResponse>* Start(const CallParts& parts,
                                                            const DaemonFacts& facts,
                                                            CallScope scope);
  static grpc::ServerWriteReactor<v1::DrainResponse>* Refuse(const absl::Status& status);
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  DrainCall(const CallParts& parts, const DaemonFacts& facts, CallScope scope)
      : parts_(parts), facts_(facts), edge_(parts.edges.Next()), scope_(std::move(scope)) {}
  void Begin();
  // Edge thread.
  void AskLater();
  void OnProgress(const store::DrainResult& progress);
  void OnResult(const absl::StatusOr<store::DrainResult>& result);
  void WriteLast();
  void End(const absl::Status& status);
  void Count(absl::StatusCode code);

  const CallParts& parts_;
  const DaemonFacts& facts_;
  Executor& edge_;
  CallScope scope_;
  // Edge thread.
  bool has_ended_ = false;
  bool is_writing_ = false;
  bool has_result_ = false;
  v1::DrainResponse message_;
  v1::DrainResponse message_last_;
  std::shared_ptr<DrainCall> self_;  // until OnDone()
};

}  // namespace kvstore::service
