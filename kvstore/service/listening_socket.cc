#include "kvstore/service/listening_socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"

namespace kvstore::service {
namespace {

constexpr int kBacklog = 512;

absl::Status ErrnoStatus(const std::string& what) { return absl::ErrnoToStatus(errno, what); }

UniqueFd OpenReserve() { return UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC)); }

mode_t FolderMode(SocketAudience audience) {
  return audience == SocketAudience::kGroup ? 0750 : 0700;
}
mode_t SocketMode(SocketAudience audience) {
  return audience == SocketAudience::kGroup ? 0660 : 0600;
}

std::string FolderOf(const std::string& path) {
  std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

// Whoever can write to the folder can put another socket in our place.
absl::Status CheckFolder(const std::string& folder) {
  struct stat st;
  if (stat(folder.c_str(), &st) != 0) return ErrnoStatus(absl::StrCat("folder ", folder));
  if (!S_ISDIR(st.st_mode))
    return absl::FailedPreconditionError(absl::StrCat(folder, " is not a folder"));
  if (st.st_uid != geteuid() && st.st_uid != 0) {
    return absl::FailedPreconditionError(absl::StrCat("folder ", folder, " belongs to uid ",
                                                      st.st_uid, ", neither to us nor to root"));
  }
  const bool is_sticky = (st.st_mode & S_ISVTX) != 0;
  if ((st.st_mode & (S_IWGRP | S_IWOTH)) != 0 && !is_sticky) {
    return absl::FailedPreconditionError(
        absl::StrCat("folder ", folder, " can be written by others; chmod go-w ", folder));
  }
  return absl::OkStatus();
}

absl::Status MakeFolder(const std::string& folder, SocketAudience audience) {
  if (mkdir(folder.c_str(), FolderMode(audience)) == 0) {
    // mkdir() applies the umask.
    if (chmod(folder.c_str(), FolderMode(audience)) != 0)
      return ErrnoStatus(absl::StrCat("chmod ", folder));
  } else if (errno != EEXIST) {
    return ErrnoStatus(absl::StrCat("cannot make the folder ", folder));
  }
  return CheckFolder(folder);
}

absl::StatusOr<sockaddr_un> UnixAddress(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return absl::InvalidArgumentError(absl::StrCat("socket path ", path, " is longer than ",
                                                   sizeof address.sun_path - 1, " bytes"));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

int SystemType(SocketType type) {
  return (type == SocketType::kStream ? SOCK_STREAM : SOCK_SEQPACKET) | SOCK_NONBLOCK |
         SOCK_CLOEXEC;
}

// Removes a socket that nobody listens on. Errors: AlreadyExists, somebody does;
// FailedPrecondition, it is not a socket.
absl::Status RemoveStale(const std::string& path, const sockaddr_un& address, SocketType type) {
  struct stat st;
  if (lstat(path.c_str(), &st) != 0) {
    return errno == ENOENT ? absl::OkStatus() : ErrnoStatus(absl::StrCat("socket ", path));
  }
  if (!S_ISSOCK(st.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " exists and is not a socket; not touching it"));
  }
  UniqueFd probe(socket(AF_UNIX, SystemType(type), 0));
  if (!probe.is_open()) return ErrnoStatus("socket");
  // EAGAIN: its backlog is full, so somebody has it. ECONNREFUSED is what a socket without a
  // listener answers.
  if (connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ||
      errno != ECONNREFUSED) {
    return absl::AlreadyExistsError(
        absl::StrCat("socket ", path, " is in use by a running program"));
  }
  if (unlink(path.c_str()) != 0 && errno != ENOENT)
    return ErrnoStatus(absl::StrCat("cannot remove the stale socket ", path));
  return absl::OkStatus();
}

absl::Status NotLoopback(const std::string& address) {
  return absl::InvalidArgumentError(
      absl::StrCat("tcp:", address,
                   ": not a loopback address. Without TLS (auth.tls_cert) TCP is served on "
                   "loopback only, also with server.insecure; valid: 127.0.0.0/8, [::1] or "
                   "localhost with a port"));
}

absl::StatusOr<std::pair<sockaddr_storage, socklen_t>> TcpAddress(const std::string& address,
                                                                  TcpReach reach) {
  const bool is_any = reach == TcpReach::kAnywhere;
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos)
    return absl::InvalidArgumentError(absl::StrCat("tcp:", address, ": no port"));
  std::string host = address.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']')
    host = host.substr(1, host.size() - 2);
  if (host == "localhost") host = "127.0.0.1";
  uint16_t port = 0;
  const char* end = address.data() + address.size();
  auto [rest, error] = std::from_chars(address.data() + colon + 1, end, port);
  if (error != std::errc() || rest != end)
    return absl::InvalidArgumentError(
        absl::StrCat("tcp:", address, ": the port is not 0 to 65535"));

  sockaddr_storage storage{};
  auto* v4 = reinterpret_cast<sockaddr_in*>(&storage);
  if (inet_pton(AF_INET, host.c_str(), &v4->sin_addr) == 1) {
    if (!is_any && (ntohl(v4->sin_addr.s_addr) >> 24) != 127) return NotLoopback(address);
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    return std::pair(storage, socklen_t{sizeof *v4});
  }
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&storage);
  if (inet_pton(AF_INET6, host.c_str(), &v6->sin6_addr) == 1 &&
      (is_any || IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr))) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    return std::pair(storage, socklen_t{sizeof *v6});
  }
  if (!is_any) return NotLoopback(address);
  return absl::InvalidArgumentError(
      absl::StrCat("tcp:", address, ": the host is not a numeric address"));
}

}  // namespace

absl::StatusOr<SocketPathLock> SocketPathLock::Take(const std::string& socket_path,
                                                    SocketAudience audience) {
  RETURN_IF_ERROR(MakeFolder(FolderOf(socket_path), audience));
  const std::string path = socket_path + ".lock";
  SocketPathLock lock;
  lock.fd_.Reset(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.fd_.is_open()) return ErrnoStatus(absl::StrCat("cannot open ", path));
  if (flock(lock.fd_.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(absl::StrCat("cannot lock ", path));
    return absl::AlreadyExistsError(absl::StrCat(
        "socket ", socket_path, " is in use by a running kvstored (it holds ", path, ")"));
  }
  return lock;
}

absl::StatusOr<ListeningSocket> ListeningSocket::BindUnix(const std::string& path, SocketType type,
                                                          SocketAudience audience,
                                                          const SocketPathLock&) {
  ASSIGN_OR_RETURN(sockaddr_un address, UnixAddress(path));
  RETURN_IF_ERROR(RemoveStale(path, address, type));
  ListeningSocket made;
  made.fd_.Reset(socket(AF_UNIX, SystemType(type), 0));
  if (!made.fd_.is_open()) return ErrnoStatus("socket");
  // fchmod() before bind() fixes the mode that the file is born with, whatever the umask: there is
  // no moment in which it is wider.
  if (fchmod(made.fd_.get(), SocketMode(audience)) != 0) return ErrnoStatus("fchmod of a socket");
  if (bind(made.fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return ErrnoStatus(absl::StrCat("cannot bind ", path));
  }
  made.path_ = path;
  if (chmod(path.c_str(), SocketMode(audience)) != 0)
    return ErrnoStatus(absl::StrCat("chmod ", path));
  if (listen(made.fd_.get(), kBacklog) != 0)
    return ErrnoStatus(absl::StrCat("cannot listen on ", path));
  made.reserve_ = OpenReserve();
  return made;
}

absl::StatusOr<ListeningSocket> ListeningSocket::BindTcp(const std::string& address,
                                                         TcpReach reach) {
  ASSIGN_OR_RETURN(auto resolved, TcpAddress(address, reach));
  ListeningSocket made;
  made.fd_.Reset(socket(resolved.first.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!made.fd_.is_open()) return ErrnoStatus("socket");
  const int on = 1;
  setsockopt(made.fd_.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(made.fd_.get(), reinterpret_cast<const sockaddr*>(&resolved.first), resolved.second) !=
      0) {
    return ErrnoStatus(absl::StrCat("cannot bind tcp:", address));
  }
  if (listen(made.fd_.get(), kBacklog) != 0)
    return ErrnoStatus(absl::StrCat("cannot listen on tcp:", address));
  made.reserve_ = OpenReserve();
  return made;
}

ListeningSocket::~ListeningSocket() {
  if (fd_.is_open() && !path_.empty()) unlink(path_.c_str());
}

ListeningSocket::AcceptResult ListeningSocket::Accept(UniqueFd* connection) {
  for (int tries = 0; tries < 64; ++tries) {
    const int fd = accept4(fd_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      if (!reserve_.is_open()) reserve_ = OpenReserve();
      if (!is_unix()) {
        const int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      }
      connection->Reset(fd);
      return AcceptResult::kAccepted;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK) return AcceptResult::kNothing;
    if (errno == EMFILE || errno == ENFILE) {
      ++shed_connections_;
      if (!reserve_.is_open()) return AcceptResult::kExhausted;
      reserve_.Reset();
      UniqueFd shed(accept4(fd_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      const bool did_shed = shed.is_open();
      shed.Reset();
      reserve_ = OpenReserve();
      return did_shed ? AcceptResult::kShed : AcceptResult::kExhausted;
    }
    if (errno == ENOBUFS || errno == ENOMEM) return AcceptResult::kExhausted;
    // ECONNABORTED and network errors of the connection itself: the next one.
  }
  return AcceptResult::kNothing;
}

}  // namespace kvstore::service
