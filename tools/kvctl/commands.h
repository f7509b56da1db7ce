// The commands of kvctl: each asks the daemon, prints its answer and gives the exit code; an error
// is returned and printed by main().
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "tools/kvctl/arguments.h"
#include "tools/kvctl/exit_code.h"

namespace kvstore::kvctl {

class DaemonCalls;

// What a command works with. `target` is resolved.
struct Context {
  const Arguments& arguments;
  std::string target;
  DaemonCalls& daemon;
};

// status_commands.cc
absl::StatusOr<ExitCode> RunStatus(const Context& context);
absl::StatusOr<ExitCode> RunTiers(const Context& context);
absl::StatusOr<ExitCode> RunConfig(const Context& context);
// drain_commands.cc
absl::StatusOr<ExitCode> RunDrain(const Context& context);
absl::StatusOr<ExitCode> RunResume(const Context& context);
// namespace_commands.cc
absl::StatusOr<ExitCode> RunOpen(const Context& context);
absl::StatusOr<ExitCode> RunNamespaces(const Context& context);
absl::StatusOr<ExitCode> RunClear(const Context& context);
// page_commands.cc
absl::StatusOr<ExitCode> RunPut(const Context& context);
absl::StatusOr<ExitCode> RunGet(const Context& context);
absl::StatusOr<ExitCode> RunMatch(const Context& context);
// block_commands.cc
absl::StatusOr<ExitCode> RunList(const Context& context);
absl::StatusOr<ExitCode> RunEvict(const Context& context);
absl::StatusOr<ExitCode> RunVerify(const Context& context);
// quota_command.cc
absl::StatusOr<ExitCode> RunQuota(const Context& context);
// completion.cc; needs no daemon
ExitCode RunCompletion(const std::string& shell);

}  // namespace kvstore::kvctl
