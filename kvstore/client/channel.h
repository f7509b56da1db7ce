// Targets and gRPC channels to a daemon, for the client library and for tools that speak to the
// Admin service.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace grpc {
class Channel;
class ClientContext;
class Status;
}  // namespace grpc

namespace kvstore::client {

// Metadata of every call that belongs to a session (16 bytes), and of calls by callers who may act
// for any tenant.
inline constexpr char kSessionMetadata[] = "kvstore-session-bin";
inline constexpr char kTenantMetadata[] = "kvstore-tenant";
// Largest message either side takes: 65,536 blocks of columns and then some. Pages travel in pieces
// of 1 MiB.
inline constexpr int kMessageBytesMax = 8 << 20;

// Where a daemon listens: "unix:PATH" or "tcp:HOST:PORT".
struct Target {
  bool is_unix = false;
  std::string address;  // PATH or HOST:PORT
};
// Errors: InvalidArgument naming the text and what is valid.
absl::StatusOr<Target> ParseTarget(std::string_view text);

// A channel of its own connection (nothing is shared with other channels of the process), which
// reconnects with a backoff of 100 ms to 1 s. Does not wait for the daemon. Make stubs of it with
// `v1::Admin::NewStub(channel)`. Errors: InvalidArgument, bad target.
absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(std::string_view target);

// The same code and message; codes are numbered alike.
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace kvstore::client
