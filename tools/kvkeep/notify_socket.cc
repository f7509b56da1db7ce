#include "tools/kvkeep/notify_socket.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

namespace kvstore::keep {
namespace {

constexpr size_t kTextBytesMax = 4096;   // as systemd
constexpr size_t kDescriptorsMax = 253;  // of a datagram (SCM_MAX_FD)

void TakeControl(const cmsghdr* header, Notification* notification) {
  if (header->cmsg_level != SOL_SOCKET) return;
  const size_t bytes = header->cmsg_len - CMSG_LEN(0);
  if (header->cmsg_type == SCM_CREDENTIALS && bytes == sizeof(ucred)) {
    ucred credentials;
    std::memcpy(&credentials, CMSG_DATA(header), sizeof credentials);
    notification->sender = credentials.pid;
  } else if (header->cmsg_type == SCM_RIGHTS) {
    for (size_t at = 0; at + sizeof(int) <= bytes; at += sizeof(int)) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(header) + at, sizeof fd);
      notification->descriptors.emplace_back(fd);
    }
  }
}

}  // namespace

absl::StatusOr<NotifySocket> NotifySocket::Open() {
  UniqueFd fd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.is_open()) return absl::ErrnoToStatus(errno, "socket");
  const int on = 1;
  if (setsockopt(fd.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof on) != 0)
    return absl::ErrnoToStatus(errno, "SO_PASSCRED");
  // Without a name the kernel gives an abstract one that is free.
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address.sun_family) != 0)
    return absl::ErrnoToStatus(errno, "bind");
  socklen_t length = sizeof address;
  if (getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0 ||
      length <= offsetof(sockaddr_un, sun_path) + 1) {
    return absl::ErrnoToStatus(errno, "getsockname");
  }
  std::string name(address.sun_path, length - offsetof(sockaddr_un, sun_path));
  name[0] = '@';
  return NotifySocket(std::move(fd), std::move(name));
}

std::optional<Notification> NotifySocket::Receive() const {
  std::array<char, kTextBytesMax> text;
  alignas(cmsghdr)
      std::array<char, CMSG_SPACE(sizeof(ucred)) + CMSG_SPACE(kDescriptorsMax * sizeof(int))>
          control;
  iovec part{text.data(), text.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t bytes;
  do {
    bytes = recvmsg(fd_.get(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (bytes < 0 && errno == EINTR);
  if (bytes < 0) return std::nullopt;
  Notification notification;
  for (const cmsghdr* h = CMSG_FIRSTHDR(&message); h != nullptr;
       h = CMSG_NXTHDR(&message, const_cast<cmsghdr*>(h)))
    TakeControl(h, &notification);
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0)
    notification.text.assign(text.data(), static_cast<size_t>(bytes));
  return notification;
}

}  // namespace kvstore::keep
