#include "kvstore/daemon/sd_notify.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace kvstore::daemon {
namespace {

constexpr int kFirstPassed = 3;  // SD_LISTEN_FDS_START
constexpr int kPassedMax = 1 << 17;
// For a keeper that is busy; it only has to read a datagram.
constexpr timeval kPatience{.tv_sec = 5, .tv_usec = 0};

// Sends `state`, with `fd` unless it is -1. Waits for room at the receiver if `may_wait`.
absl::Status Send(std::string_view state, int fd, bool may_wait) {
  const char* path = std::getenv("NOTIFY_SOCKET");
  if (path == nullptr) return absl::FailedPreconditionError("NOTIFY_SOCKET is not set");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const size_t length = std::strlen(path);
  if ((path[0] != '/' && path[0] != '@') || length < 2 || length >= sizeof address.sun_path)
    return absl::FailedPreconditionError("NOTIFY_SOCKET names no Unix socket");
  std::memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = '\0';  // an abstract socket
  UniqueFd from(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!from.is_open()) return absl::UnavailableError("no socket to reach NOTIFY_SOCKET");
  setsockopt(from.get(), SOL_SOCKET, SO_SNDTIMEO, &kPatience, sizeof kPatience);
  iovec part{const_cast<char*>(state.data()), state.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
  msghdr message{};
  message.msg_name = &address;
  message.msg_namelen = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length);
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  ssize_t sent;
  do {
    sent = sendmsg(from.get(), &message, MSG_NOSIGNAL | (may_wait ? 0 : MSG_DONTWAIT));
  } while (sent < 0 && errno == EINTR);
  if (sent >= 0) return absl::OkStatus();
  return absl::UnavailableError(absl::ErrnoToStatus(errno, "sending to NOTIFY_SOCKET").message());
}

int NumberIn(const char* variable) {
  const char* const text = std::getenv(variable);
  int number = 0;
  return text != nullptr && absl::SimpleAtoi(text, &number) ? number : 0;
}

}  // namespace

void SdNotify(std::string_view state) { Send(state, -1, false).IgnoreError(); }

SdDescriptorStore::SdDescriptorStore() {
  const int count = NumberIn("LISTEN_FDS");
  const char* const all_names = std::getenv("LISTEN_FDNAMES");
  const std::vector<std::string> names = absl::StrSplit(all_names == nullptr ? "" : all_names, ':');
  // Meant for another process: our parent has passed its environment on.
  const bool is_for_us = NumberIn("LISTEN_PID") == getpid();
  for (int i = 0; is_for_us && i < count && i < kPassedMax; ++i) {
    const int fd = kFirstPassed + i;
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) continue;
    const auto at = static_cast<size_t>(i);
    names_.push_back(at < names.size() ? names[at] : std::string());
    passed_.emplace(names_.back(), UniqueFd(fd));
  }
  for (const char* variable : {"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}) unsetenv(variable);
}

absl::Status SdDescriptorStore::CheckRoomFor(size_t num_descriptors) {
  constexpr char kWhatToDo[] =
      "; start kvstored by systemd with FileDescriptorStoreMax= in its unit, or by kvkeep";
  if (std::getenv("NOTIFY_SOCKET") == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tier.dram.backing = kept, but nobody is there to keep the memory (NOTIFY_SOCKET is not "
        "set)",
        kWhatToDo));
  }
  // systemd says it since version 254.
  if (std::getenv("FDSTORE") == nullptr) return absl::OkStatus();
  const auto room = static_cast<size_t>(std::max(NumberIn("FDSTORE"), 0));
  if (room >= num_descriptors) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("tier.dram.backing = kept needs ", num_descriptors,
                   " descriptors kept, and whoever started us keeps ", room,
                   "; raise FileDescriptorStoreMax= in the unit, or --descriptors of kvkeep"));
}

absl::Status SdDescriptorStore::Keep(const std::string& name, int fd) {
  return Send(absl::StrCat("FDSTORE=1\nFDPOLL=0\nFDNAME=", name), fd, true);
}

void SdDescriptorStore::Forget(const std::string& name) {
  Send(absl::StrCat("FDSTOREREMOVE=1\nFDNAME=", name), -1, true).IgnoreError();
}

std::vector<std::string> SdDescriptorStore::Names() const { return names_; }

absl::StatusOr<UniqueFd> SdDescriptorStore::Take(const std::string& name) {
  const auto it = passed_.find(name);
  if (it == passed_.end()) return absl::NotFoundError(absl::StrCat("no ", name, " was kept"));
  UniqueFd fd = std::move(it->second);
  passed_.erase(it);
  return fd;
}

}  // namespace kvstore::daemon
