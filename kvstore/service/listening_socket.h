// Sockets that clients connect to: binding them safely, and accepting so that running out of file
// descriptors is survived.
//
// Unix sockets: the folder is made 0700 (0750 where other uids may connect), the socket 0600
// (0660). A lock file beside it (PATH.lock) tells a live daemon from a socket that a dead one left;
// only the holder of the lock removes such a socket. A path that is something else than a socket,
// or a folder that others may write to, is refused. TCP without TLS: loopback addresses only.
//
// Externally synchronised.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/unique_fd.h"

namespace kvstore::service {

enum class SocketAudience { kOwnerOnly, kGroup };  // who may reach the socket file
enum class TcpReach { kLoopback, kAnywhere };      // which addresses may be bound
enum class SocketType { kStream, kSeqPacket };

// The lock on a socket path, held while the daemon lives.
class SocketPathLock {
 public:
  // Makes the folder if it is missing. Errors: AlreadyExists, a live daemon holds it;
  // FailedPrecondition, unsafe folder; errno's.
  static absl::StatusOr<SocketPathLock> Take(const std::string& socket_path,
                                             SocketAudience audience);
  SocketPathLock(SocketPathLock&&) = default;
  SocketPathLock& operator=(SocketPathLock&&) = default;

 private:
  SocketPathLock() = default;
  UniqueFd fd_;
};

class ListeningSocket {
 public:
  // `lock` shows that the caller holds the lock on `path` (or on the path that `path` is derived
  // from). Errors: AlreadyExists, somebody listens there; FailedPrecondition, the path is not a
  // socket; errno's.
  static absl::StatusOr<ListeningSocket> BindUnix(const std::string& path, SocketType type,
                                                  SocketAudience audience,
                                                  const SocketPathLock& lock);
  // `address` is HOST:PORT. Errors: InvalidArgument, not a numeric address or "localhost", or
  // beyond `reach`; errno's.
  static absl::StatusOr<ListeningSocket> BindTcp(const std::string& address, TcpReach reach);
  ListeningSocket(ListeningSocket&&) = default;
  ListeningSocket& operator=(ListeningSocket&&) = default;
  ~ListeningSocket();  // closes it and removes the socket file

  enum class AcceptResult { kAccepted, kNothing, kShed, kExhausted };
  // Never blocks. kShed: no descriptor was free; the connection was accepted on the reserve and
  // closed, so that the backlog does not fill with the dead. kExhausted: not even that worked; try
  // again later. Both are counted.
  AcceptResult Accept(UniqueFd* connection);

  int fd() const { return fd_.get(); }
  bool is_unix() const { return !path_.empty(); }
  uint64_t shed_connections() const { return shed_connections_; }

 private:
  ListeningSocket() = default;
  UniqueFd fd_;
  UniqueFd reserve_;  // given up for a moment to shed a connection when all descriptors are in use
  std::string path_;  // of a unix socket
  uint64_t shed_connections_ = 0;
};

}  // namespace kvstore::service
