// Exit codes of kvctl: a contract that scripts rely on.
#pragma once

namespace kvstore::kvctl {

enum class ExitCode : int {
  kDone = 0,
  kFailed = 1,
  kUsage = 2,  // wrong command line, or input that can never work (INVALID_ARGUMENT)
  kNothingMatched = 3,
  kNoDaemon = 4,
};

}  // namespace kvstore::kvctl
