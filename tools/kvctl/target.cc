#include "tools/kvctl/target.h"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/client/channel.h"

namespace kvstore::kvctl {
namespace {

std::string DefaultTarget() {
  const char* runtime_dir = std::getenv("XDG_RUNTIME_DIR");
  const bool is_root = geteuid() == 0;
  const std::string dir =
      is_root || runtime_dir == nullptr || *runtime_dir == '\0' ? "/run" : runtime_dir;
  return absl::StrCat("unix:", dir, "/kvstore/kvstored.sock");
}

absl::Status ConnectError(const std::string& target, int error) {
  const std::string what = absl::StrCat(target, ": ", std::strerror(error));
  if (error == EACCES || error == EPERM) {
    return absl::PermissionDeniedError(absl::StrCat("may not connect to ", what));
  }
  return absl::UnavailableError(absl::StrCat("no daemon at ", what));
}

// 0, or an errno.
int ConnectOnce(int family, const sockaddr* address, socklen_t length, absl::Duration timeout) {
  const int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return errno;
  int error = connect(fd, address, length) == 0 ? 0 : errno;
  // A Unix socket with a full queue: somebody listens there.
  if (family == AF_UNIX && error == EAGAIN) error = 0;
  if (error == EINPROGRESS) {
    pollfd poll_fd{.fd = fd, .events = POLLOUT, .revents = 0};
    const int ready = poll(&poll_fd, 1, static_cast<int>(absl::ToInt64Milliseconds(timeout)));
    socklen_t size = sizeof error;
    if (ready == 0) error = ETIMEDOUT;
    if (ready > 0) getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (ready < 0) error = errno;
  }
  close(fd);
  return error;
}

absl::Status ProbeUnix(const std::string& target, const std::string& path, absl::Duration timeout) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), std::min(path.size(), sizeof address.sun_path - 1));
  const int error =
      ConnectOnce(AF_UNIX, reinterpret_cast<const sockaddr*>(&address), sizeof address, timeout);
  return error == 0 ? absl::OkStatus() : ConnectError(target, error);
}

absl::Status ProbeTcp(const std::string& target, const std::string& host_port,
                      absl::Duration timeout) {
  const size_t colon = host_port.rfind(':');
  std::string host = host_port.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int code = getaddrinfo(host.c_str(), host_port.c_str() + colon + 1, &hints, &found);
      code != 0) {
    return absl::UnavailableError(absl::StrCat("no daemon at ", target, ": ", gai_strerror(code)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, freeaddrinfo);
  int error = ECONNREFUSED;
  for (const addrinfo* a = found; a != nullptr && error != 0; a = a->ai_next) {
    error = ConnectOnce(a->ai_family, a->ai_addr, a->ai_addrlen, timeout);
  }
  return error == 0 ? absl::OkStatus() : ConnectError(target, error);
}

}  // namespace

absl::StatusOr<std::string> ResolveTarget(const std::optional<std::string>& flag) {
  const char* variable = std::getenv("KVSTORE_TARGET");
  const bool has_variable = variable != nullptr && *variable != '\0';
  const std::string target = flag ? *flag : has_variable ? variable : DefaultTarget();
  absl::StatusOr<client::Target> parsed = client::ParseTarget(target);
  if (!parsed.ok()) return parsed.status();
  return target;
}

absl::Status ProbeTarget(const std::string& target, absl::Duration timeout) {
  ASSIGN_OR_RETURN(const client::Target parsed, client::ParseTarget(target));
  return parsed.is_unix ? ProbeUnix(target, parsed.address, timeout)
                        : ProbeTcp(target, parsed.address, timeout);
}

}  // namespace kvstore::kvctl
