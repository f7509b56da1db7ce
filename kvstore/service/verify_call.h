// One Verify call: the result of a verification in one message.
#pragma once

#include <grpcpp/grpcpp.h>

#include <optional>

#include "absl/status/statusor.h"
#include "kvstore/service/stream_call.h"
#include "kvstore/v1/admin.pb.h"

namespace kvstore::service {

class VerifyCall final
    : public StreamCall<VerifyCall, grpc::ServerWriteReactor<v1::VerifyResponse>> {
 public:
  // A call that may not enter ends with the reason.
  static grpc::ServerWriteReactor<v1::VerifyResponse>* Start(const CallParts& parts,
                                                             absl::StatusOr<CallScope> entered,
                                                             const v1::VerifyRequest& request);

 private:
  friend class StreamCall;
  explicit VerifyCall(const CallParts& parts) : StreamCall(parts, Operation::kAdmin) {}
  absl::Status Begin(const v1::VerifyRequest& request);
  void OnResult(const absl::StatusOr<store::VerifyResult>& result);  // edge thread

  v1::VerifyResponse message_;
};

}  // namespace kvstore::service
