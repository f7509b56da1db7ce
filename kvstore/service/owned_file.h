// Reading files that decide who is let in: tenants, certificates, keys.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace kvstore::service {

// Who else may touch the file.
//   kProtected  it belongs to us or to root, and neither group nor others can write it
//   kSecret     it belongs to us, and its mode is 0400 or 0600
enum class FileCare { kProtected, kSecret };

inline constexpr size_t kOwnedFileBytesMax = size_t{1} << 20;

// The whole content. What is checked is the opened file, not the path: a link is followed (secrets
// are often mounted as links) and its target must be in order. Never blocks on a pipe or a device.
// Errors: FailedPrecondition, naming the file and what to do; InvalidArgument, larger than 1 MiB;
// errno's.
absl::StatusOr<std::string> ReadOwnedFile(const std::string& path, FileCare care);

}  // namespace kvstore::service
