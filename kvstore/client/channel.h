// Targets and gRPC channels to a daemon, for the client library and for tools that speak to the
// Admin service.
#pragma once

#include <memory>
#include <optional>
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

// Where the Admin calls of the daemon at `target` are served, unless its server.admin says
// otherwise: "unix:PATH.admin". Errors: InvalidArgument, bad target; PermissionDenied, a tcp
// target, where there is no Admin service.
absl::StatusOr<std::string> AdminTarget(std::string_view target);

// PEM files of a client's identity on tcp targets: its certificate with chain, its key, and the
// authorities whose servers it trusts. Read again when they change: what connects later uses them.
struct TlsFiles {
  std::string cert;
  std::string key;
  std::string ca;
};

// A channel of its own connection (nothing is shared with other channels of the process), which
// reconnects with a backoff of 100 ms to 1 s. Does not wait for the daemon. Make stubs of it with
// `v1::KvStore::NewStub(channel)`. With `tls` the server's certificate must bear the target's HOST
// (DNS name or IP address). Errors: InvalidArgument, bad target, or `tls` with a unix one; errno's,
// a file of `tls` cannot be read.
absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(
    std::string_view target, const std::optional<TlsFiles>& tls = std::nullopt);

// The same code and message; codes are numbered alike.
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace kvstore::client
