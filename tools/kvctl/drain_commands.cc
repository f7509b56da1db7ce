// drain, resume.
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "tools/kvctl/commands.h"
#include "tools/kvctl/daemon_calls.h"
#include "tools/kvctl/report.h"

namespace kvstore::kvctl {

absl::StatusOr<ExitCode> RunDrain(const Context& context) {
  const bool shows_progress = !context.arguments.json && isatty(STDERR_FILENO) != 0;
  const auto on_progress = [shows_progress](const v1::DrainResponse& message) {
    if (!shows_progress) return;
    if (message.is_last()) {
      std::fprintf(stderr, "\r%60s\r", "");
    } else {
      std::fprintf(stderr, "\rwritten %s blocks, %s to be written",
                   FormatCount(message.written_blocks()).c_str(),
                   FormatCount(message.waiting_blocks()).c_str());
    }
  };
  ASSIGN_OR_RETURN(const v1::DrainResponse result, context.daemon.Drain(on_progress));
  if (context.arguments.json) {
    PrintJson({{"written_blocks", result.written_blocks()},
               {"memory_only_blocks", result.memory_only_blocks()}});
    return ExitCode::kDone;
  }
  PrintText(absl::StrCat("drained: ", FormatCount(result.written_blocks()), " blocks written; ",
                         FormatCount(result.memory_only_blocks()),
                         " blocks lie in memory only and go when the daemon ends\n"));
  return ExitCode::kDone;
}

absl::StatusOr<ExitCode> RunResume(const Context& context) {
  ASSIGN_OR_RETURN(const v1::ResumeResponse result, context.daemon.Resume());
  if (context.arguments.json) {
    PrintJson({{"was_draining", result.was_draining()}});
  } else {
    PrintText(result.was_draining() ? "saves are taken again\n" : "the daemon was not draining\n");
  }
  return ExitCode::kDone;
}

}  // namespace kvstore::kvctl
