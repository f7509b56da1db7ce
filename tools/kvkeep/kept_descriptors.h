// What a service has given us to keep: descriptors with names, at most so many.
//
// Confined to one thread.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kvstore/base/unique_fd.h"
#include "tools/kvkeep/notify_socket.h"

namespace kvstore::keep {

class KeptDescriptors {
 public:
  explicit KeptDescriptors(size_t max) : max_(max) {}

  struct Heard {
    bool is_ready = false;
    absl::Status status;  // why something in it was not done
  };
  // Does what a notification of our service asks for: FDSTORE=1, FDSTOREREMOVE=1, with FDNAME=.
  // What is not for us is ignored. Descriptors that are not kept are closed.
  Heard Apply(Notification notification);

  const std::vector<std::pair<std::string, UniqueFd>>& all() const { return kept_; }

 private:
  absl::Status Keep(const std::string& name, std::vector<UniqueFd> descriptors);

  const size_t max_;
  std::vector<std::pair<std::string, UniqueFd>> kept_;
};

}  // namespace kvstore::keep
