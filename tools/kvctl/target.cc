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
#include "kvstore/base/memory_socket.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/client/channel.h"

namespace kvstore::kvctl {
namespace {

// The daemon closes connections of uids that it does not serve as soon as it accepts them.
constexpr absl::Duration kHangUpWatch = absl::Milliseconds(300);

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

// How long to connect, and how long to watch then whether the other side hangs up.
struct Patience {
  absl::Duration connect;
  absl::Duration watch;
};

int Milliseconds(absl::Duration d) { return static_cast<int>(absl::ToInt64Milliseconds(d)); }

// True if the peer closes a connection on which nothing was said.
bool HangsUp(int fd, absl::Duration watch) {
  pollfd poll_fd{.fd = fd, .events = POLLIN, .revents = 0};
  char byte;
  return poll(&poll_fd, 1, Milliseconds(watch)) > 0 && recv(fd, &byte, 1, MSG_PEEK) <= 0;
}

// 0, or an errno; EPERM when the peer hangs up at once.
int ConnectOnce(int family, const sockaddr* address, socklen_t length, const Patience& patience) {
  const int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return errno;
  int error = connect(fd, address, length) == 0 ? 0 : errno;
  // A Unix socket with a full queue: somebody listens there.
  if (family == AF_UNIX && error == EAGAIN) error = 0;
  if (error == EINPROGRESS) {
    pollfd poll_fd{.fd = fd, .events = POLLOUT, .revents = 0};
    const int ready = poll(&poll_fd, 1, Milliseconds(patience.connect));
    socklen_t size = sizeof error;
    if (ready == 0) error = ETIMEDOUT;
    if (ready > 0) getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (ready < 0) error = errno;
  }
  if (error == 0 && patience.watch > absl::ZeroDuration() && HangsUp(fd, patience.watch)) {
    error = EPERM;
  }
  close(fd);
  return error;
}

absl::Status ProbeUnix(const std::string& target, const std::string& path,
                       const Patience& patience) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), std::min(path.size(), sizeof address.sun_path - 1));
  const int error =
      ConnectOnce(AF_UNIX, reinterpret_cast<const sockaddr*>(&address), sizeof address, patience);
  return error == 0 ? absl::OkStatus() : ConnectError(target, error);
}

absl::Status ProbeTcp(const std::string& target, const std::string& host_port,
                      const Patience& patience) {
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
    error = ConnectOnce(a->ai_family, a->ai_addr, a->ai_addrlen, patience);
  }
  return error == 0 ? absl::OkStatus() : ConnectError(target, error);
}

absl::Status Probe(const std::string& target, const Patience& patience) {
  ASSIGN_OR_RETURN(const client::Target parsed, client::ParseTarget(target));
  return parsed.is_unix ? ProbeUnix(target, parsed.address, patience)
                        : ProbeTcp(target, parsed.address, patience);
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

absl::StatusOr<std::string> ResolveAdmin(const std::optional<std::string>& flag,
                                         const std::string& target) {
  // The admin socket itself may be named too.
  if (!flag && target.ends_with(kAdminSocketSuffix)) return target;
  if (!flag) return client::AdminTarget(target);
  ASSIGN_OR_RETURN(const client::Target parsed, client::ParseTarget(*flag));
  if (parsed.is_unix) return *flag;
  return absl::InvalidArgumentError(absl::StrCat("--admin ", *flag, ": valid is unix:PATH"));
}

absl::Status ProbeTarget(const std::string& target, absl::Duration timeout) {
  return Probe(target, {.connect = timeout, .watch = absl::ZeroDuration()});
}

absl::Status ExplainSilence(const std::string& target, absl::Duration timeout) {
  return Probe(target, {.connect = timeout, .watch = kHangUpWatch});
}

}  // namespace kvstore::kvctl
