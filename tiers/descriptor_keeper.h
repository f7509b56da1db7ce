// DescriptorKeeper holds descriptors of this process and gives them to the one that comes after it:
// a service manager, by the protocol of sd_notify's descriptor store. The daemon has one over
// $NOTIFY_SOCKET; tests have their own.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/unique_fd.h"

namespace kvstore::tiers {

class DescriptorKeeper {
 public:
  virtual ~DescriptorKeeper() = default;
  // Thread-safe; may block for as long as the keeper takes to read (bounded). `name`: at most 255
  // characters, no ':' and nothing unprintable. Errors: Unavailable, it was not told. OK does not
  // say that it will: a keeper does not answer.
  virtual absl::Status Keep(const std::string& name, int fd) = 0;
  // Thread-safe. What is kept under `name` is let go; best effort.
  virtual void Forget(const std::string& name) = 0;

  // All that was kept for this process, by name; each can be taken once. One thread.
  virtual std::vector<std::string> Names() const = 0;
  // Errors: NotFound.
  virtual absl::StatusOr<UniqueFd> Take(const std::string& name) = 0;
};

}  // namespace kvstore::tiers
