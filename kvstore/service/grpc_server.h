// A gRPC server of ours: no port of its own, connections are handed to it; with its bounds, health
// and reflection.
#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/resource_quota.h>

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/base/unique_fd.h"

namespace kvstore::service {

// `services` outlive the server. Errors: Internal, gRPC does not start one.
absl::StatusOr<std::unique_ptr<grpc::Server>> StartGrpcServer(
    const std::vector<grpc::Service*>& services, const grpc::ResourceQuota& quota);

// From now on gRPC owns the descriptor of a connected, non-blocking socket. After Shutdown() the
// connection is closed at once. Any thread.
void AddConnection(grpc::Server& server, UniqueFd connection);

// What its health service says.
void SetServing(grpc::Server& server, bool is_serving);

}  // namespace kvstore::service
