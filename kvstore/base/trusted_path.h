// Opening directories and secret files by a path that somebody else might try to bend: a symbolic
// link on the way, a parent that others can rename our directory in, a file that others can read.
//
// The path is walked one name at a time below a descriptor, so that what was looked at is what is
// opened. Thread-safe. Blocks: start-up and reloads only.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/unique_fd.h"

namespace kvstore {

// The directory that holds the last name of `path`, and that name. Every directory from the root on
// belongs to root or to us, and only its owner can write to it (or it is sticky, as /tmp).
// Errors: InvalidArgument, not an absolute path, or `..` in it; NotFound; FailedPrecondition, a
// name is a symbolic link or no directory; PermissionDenied, somebody else owns one or can write to
// it.
struct TrustedParent {
  UniqueFd directory;  // O_PATH
  std::string name;
};
absl::StatusOr<TrustedParent> OpenTrustedParent(const std::string& path);

// Reads a whole file that only we may know: regular, ours, one name, no access for group and
// others, in a trusted parent. Errors: as above; PermissionDenied, its owner, mode or links (says
// which); InvalidArgument, larger than `bytes_max`; Unavailable, it cannot be read.
absl::StatusOr<std::string> ReadSecretFile(const std::string& path, size_t bytes_max);

}  // namespace kvstore
