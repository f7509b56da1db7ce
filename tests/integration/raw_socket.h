// Bare connections to a daemon's sockets, for clients that misbehave.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <string>

#include "kvstore/base/memory_socket.h"
#include "kvstore/base/unique_fd.h"

namespace kvstore::testing {

// Closed (is_open() is false) if the connection is refused. `type`: SOCK_STREAM for gRPC,
// SOCK_SEQPACKET for the memory socket.
inline UniqueFd ConnectRaw(const std::string& path, int type) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
  UniqueFd fd(socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    fd.Reset();
  return fd;
}

// True once the other side has closed.
inline bool IsHungUp(const UniqueFd& fd, int timeout_ms) {
  pollfd waiting{.fd = fd.get(), .events = POLLRDHUP, .revents = 0};
  return poll(&waiting, 1, timeout_ms) == 1 && (waiting.revents & (POLLRDHUP | POLLHUP)) != 0;
}

inline bool SendRaw(const UniqueFd& fd, const void* data, size_t bytes) {
  return send(fd.get(), data, bytes, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes);
}

// The reply's code; nullopt: the connection was closed without one.
inline bool ReceiveReply(const UniqueFd& fd, MemoryReply* reply) {
  return recv(fd.get(), reply, sizeof *reply, 0) == static_cast<ssize_t>(sizeof *reply);
}

inline MemoryRequest Hello(MemoryAccess access = MemoryAccess::kReadWrite) {
  return MemoryRequest{.kind = MemoryRequestKind::kHello, .access = access};
}

// Opens a session of the caller's own tenant.
inline void SayHello(const UniqueFd& fd) {
  const MemoryRequest hello = Hello();
  SendRaw(fd, &hello, sizeof hello);
  MemoryReply reply;
  if (!ReceiveReply(fd, &reply) || reply.code != MemoryReplyCode::kOk) std::abort();
}

}  // namespace kvstore::testing
