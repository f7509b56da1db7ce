// Where the daemon is: --target, else $KVSTORE_TARGET, else its default socket.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace kvstore::kvctl {

// As given: "unix:PATH" or "tcp:HOST:PORT". The only place of kvctl that reads the environment.
// Errors: InvalidArgument, neither form.
absl::StatusOr<std::string> ResolveTarget(const std::optional<std::string>& flag);

// Where the Admin calls of the daemon at `target` are: `flag`, or the socket beside it.
// Errors: InvalidArgument; PermissionDenied, a tcp target.
absl::StatusOr<std::string> ResolveAdmin(const std::optional<std::string>& flag,
                                         const std::string& target);

// Connects and hangs up: says exactly why there is no daemon, at once, where gRPC would retry. A
// daemon that is there but does not answer passes. Errors: Unavailable, nothing listens;
// PermissionDenied.
absl::Status ProbeTarget(const std::string& target, absl::Duration timeout);

// After a call got no answer: as ProbeTarget(), and PermissionDenied also when the daemon closes
// our connection at once, as it does with uids that it does not serve.
absl::Status ExplainSilence(const std::string& target, absl::Duration timeout);

}  // namespace kvstore::kvctl
