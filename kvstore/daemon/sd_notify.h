// Speaks to whoever started us, systemd or kvkeep: what state we are in, and which descriptors are
// to be kept for the process that comes after us. The protocol is that of sd_notify(3) and
// sd_listen_fds(3): datagrams to $NOTIFY_SOCKET, descriptors from 3 on that $LISTEN_FDS counts.
// Without them nothing happens.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/unique_fd.h"
#include "tiers/descriptor_keeper.h"

namespace kvstore::daemon {

// E.g. "READY=1", "STOPPING=1", "STATUS=recovering". Best effort: what systemd makes of it is its
// business.
void SdNotify(std::string_view state);

// The descriptor store of the service manager. tiers/descriptor_keeper.h says how to use it.
class SdDescriptorStore final : public tiers::DescriptorKeeper {
 public:
  // Takes the descriptors that were passed to us. Call once, before threads are started: it changes
  // the environment.
  SdDescriptorStore();

  // Whether there is somebody who keeps `num_descriptors`. Errors: InvalidArgument, saying what to
  // do; OK also when a service manager does not say how many it keeps.
  static absl::Status CheckRoomFor(size_t num_descriptors);

  absl::Status Keep(const std::string& name, int fd) override;
  void Forget(const std::string& name) override;
  std::vector<std::string> Names() const override;
  absl::StatusOr<UniqueFd> Take(const std::string& name) override;

 private:
  std::vector<std::string> names_;               // of all that was passed
  std::multimap<std::string, UniqueFd> passed_;  // and not taken yet
};

}  // namespace kvstore::daemon
