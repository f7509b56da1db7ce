// The spec of `open`, from a TOML file or from flags.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "kvstore/v1/common.pb.h"
#include "tools/kvctl/arguments.h"

namespace kvstore::kvctl {

// Keys are the flags of `open` with "_" for "-", or the field names of kvstore.v1.NamespaceSpec
// (`kvctl namespaces --json` prints those). Only syntax and ranges of integers are checked here;
// the daemon checks the rest. Errors: InvalidArgument naming file, line and key: unreadable, not
// TOML, unknown key, one field twice, wrong type, out of range.
absl::StatusOr<v1::NamespaceSpec> ReadSpecFile(const std::string& path);

// Errors: InvalidArgument, --slice-bytes is no size.
absl::StatusOr<v1::NamespaceSpec> SpecFromFlags(const SpecFlags& flags);

}  // namespace kvstore::kvctl
