// The socket that a service tells its service manager things on: the receiving end of sd_notify(3).
//
// It is an abstract one, which leaves nothing behind whatever ends us. Anybody on this machine may
// send to it; the kernel says who did, and the caller listens to its own child only.
//
// Confined to one thread.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/base/unique_fd.h"

namespace kvstore::keep {

struct Notification {
  pid_t sender = 0;  // 0: the kernel did not say
  std::string text;  // KEY=VALUE lines
  std::vector<UniqueFd> descriptors;
};

class NotifySocket {
 public:
  static absl::StatusOr<NotifySocket> Open();

  int fd() const { return fd_.get(); }
  const std::string& name() const { return name_; }  // for $NOTIFY_SOCKET: "@...".
  // The next datagram; nullopt: there is none now. One that is too long comes without its text.
  std::optional<Notification> Receive() const;

 private:
  NotifySocket(UniqueFd fd, std::string name) : fd_(std::move(fd)), name_(std::move(name)) {}

  UniqueFd fd_;
  std::string name_;
};

}  // namespace kvstore::keep
