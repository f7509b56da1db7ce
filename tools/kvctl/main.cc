// kvctl: inspect and administer a kvstored daemon.
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <variant>

#include "absl/status/statusor.h"
#include "kvstore/base/status_macros.h"
#include "tools/kvctl/command_line.h"
#include "tools/kvctl/commands.h"
#include "tools/kvctl/daemon_calls.h"
#include "tools/kvctl/report.h"
#include "tools/kvctl/target.h"

namespace kvstore::kvctl {
namespace {

absl::StatusOr<ExitCode> RunCommand(const Context& context) {
  switch (context.arguments.command) {
    case CommandKind::kStatus:
      return RunStatus(context);
    case CommandKind::kTiers:
      return RunTiers(context);
    case CommandKind::kOpen:
      return RunOpen(context);
    case CommandKind::kNamespaces:
      return RunNamespaces(context);
    case CommandKind::kPut:
      return RunPut(context);
    case CommandKind::kGet:
      return RunGet(context);
    case CommandKind::kMatch:
      return RunMatch(context);
    case CommandKind::kList:
      return RunList(context);
    case CommandKind::kEvict:
      return RunEvict(context);
    case CommandKind::kClear:
      return RunClear(context);
    case CommandKind::kQuota:
      return RunQuota(context);
    case CommandKind::kVerify:
      return RunVerify(context);
    case CommandKind::kDrain:
      return RunDrain(context);
    case CommandKind::kResume:
      return RunResume(context);
    case CommandKind::kConfig:
      return RunConfig(context);
    case CommandKind::kCompletion:
      return RunCompletion(context.arguments.shell);
  }
  return absl::InternalError("unknown command");
}

std::optional<client::TlsFiles> TlsOf(const Arguments& arguments) {
  if (arguments.tls_cert.empty()) return std::nullopt;
  return client::TlsFiles{
      .cert = arguments.tls_cert, .key = arguments.tls_key, .ca = arguments.tls_ca};
}

absl::StatusOr<ExitCode> RunWithDaemon(const Arguments& arguments, const std::string& target) {
  ASSIGN_OR_RETURN(const std::unique_ptr<DaemonCalls> daemon,
                   DaemonCalls::Create(target, TlsOf(arguments), arguments.timeout));
  return RunCommand({.arguments = arguments, .target = target, .daemon = *daemon});
}

// Whether the command is served on the admin socket.
bool IsAdmin(CommandKind kind) {
  switch (kind) {
    case CommandKind::kStatus:
    case CommandKind::kTiers:
    case CommandKind::kNamespaces:
    case CommandKind::kList:
    case CommandKind::kEvict:
    case CommandKind::kQuota:
    case CommandKind::kVerify:
    case CommandKind::kDrain:
    case CommandKind::kResume:
    case CommandKind::kConfig:
      return true;
    case CommandKind::kOpen:
    case CommandKind::kPut:
    case CommandKind::kGet:
    case CommandKind::kMatch:
    case CommandKind::kClear:
    case CommandKind::kCompletion:
      return false;
  }
  return false;
}

ExitCode Fail(const absl::Status& status, const Arguments& arguments, bool is_gone) {
  const ExitCode code = PrintError(status, arguments.json);
  return is_gone ? ExitCode::kNoDaemon : code;
}

ExitCode Run(const Arguments& arguments) {
  if (arguments.command == CommandKind::kCompletion) return RunCompletion(arguments.shell);
  absl::StatusOr<std::string> target = ResolveTarget(arguments.target);
  if (!target.ok()) return Fail(target.status(), arguments, false);
  const absl::StatusOr<std::string> admin = ResolveAdmin(arguments.admin, *target);
  const bool is_admin = IsAdmin(arguments.command);
  if (is_admin && admin.ok()) target = admin;
  absl::Status status = ProbeTarget(*target, arguments.timeout);
  if (!status.ok()) return Fail(status, arguments, absl::IsUnavailable(status));
  // A tcp target: there is a daemon, but not for this.
  if (is_admin && !admin.ok()) return Fail(admin.status(), arguments, false);

  const absl::StatusOr<ExitCode> result = RunWithDaemon(arguments, *target);
  if (result.ok()) return *result;
  status = result.status();
  if (!absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status)) {
    return Fail(status, arguments, false);
  }
  // It may have gone away meanwhile, or not want us.
  const absl::Status silence = ExplainSilence(*target, arguments.timeout);
  return Fail(silence.ok() ? status : silence, arguments, absl::IsUnavailable(silence));
}

int Main(int argc, char** argv) {
  const auto parsed = ParseCommandLine(argc, argv);
  ExitCode code = ExitCode::kDone;
  if (const auto* help = std::get_if<HelpText>(&parsed)) PrintText(help->text);
  if (const auto* error = std::get_if<UsageError>(&parsed))
    code = PrintError(error->status, error->json);
  if (const auto* arguments = std::get_if<Arguments>(&parsed)) code = Run(*arguments);
  // A full disk or a closed pipe behind stdout is a failure too.
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) code = ExitCode::kFailed;
  return static_cast<int>(code);
}

}  // namespace
}  // namespace kvstore::kvctl

int main(int argc, char** argv) { return kvstore::kvctl::Main(argc, argv); }
