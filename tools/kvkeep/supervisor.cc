#include "tools/kvkeep/supervisor.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::keep {
namespace {

constexpr int kFirstPassed = 3;  // SD_LISTEN_FDS_START
constexpr int kExitNoProgram = 127, kExitBadConfiguration = 2;
constexpr absl::Duration kPauseMin = absl::Milliseconds(50), kPauseMax = absl::Seconds(5);
constexpr absl::Duration kLivedLong = absl::Seconds(1);
constexpr int kDoublingsMax = 10;

void RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

absl::StatusOr<Supervisor> Supervisor::Create(Options options) {
  RaiseFileLimit();
  sigset_t mask, old_mask;
  sigemptyset(&mask);
  for (const int signal : {SIGCHLD, SIGTERM, SIGINT, SIGHUP, SIGUSR1}) sigaddset(&mask, signal);
  sigprocmask(SIG_BLOCK, &mask, &old_mask);
  UniqueFd signals(signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals.is_open()) return absl::ErrnoToStatus(errno, "signalfd");
  ASSIGN_OR_RETURN(NotifySocket socket, NotifySocket::Open());
  return Supervisor(std::move(options), std::move(socket), std::move(signals), old_mask);
}

int Supervisor::Run() {
  Start();
  while (!exit_code_.has_value()) {
    pollfd waits[] = {{signals_.get(), POLLIN, 0}, {socket_.fd(), POLLIN, 0}};
    int timeout_ms = -1;
    if (start_at_ != absl::InfiniteFuture()) {
      timeout_ms = static_cast<int>(absl::ToInt64Milliseconds(
          std::max(absl::ZeroDuration(), start_at_ - absl::Now()) + absl::Milliseconds(1)));
    }
    if (poll(waits, 2, timeout_ms) < 0 && errno != EINTR) return 1;
    HearAll();  // before signals: what the dead one has sent is kept
    OnSignals();
    if (!exit_code_.has_value() && absl::Now() >= start_at_) Start();
  }
  return *exit_code_;
}

void Supervisor::Start() {
  start_at_ = absl::InfiniteFuture();
  was_ready_ = false;
  started_ = absl::Now();
  const pid_t parent = getpid();
  child_ = fork();
  if (child_ == 0) Become(parent);
  if (child_ < 0) {
    child_ = 0;
    Log(LogLevel::kError, "cannot fork", {{"error", errno}});
    start_at_ = absl::Now() + PauseAfter(absl::ZeroDuration());
    return;
  }
  Log(LogLevel::kInfo, "started",
      {{"program", options_.command[0]}, {"pid", child_}, {"descriptors", kept_.all().size()}});
}

void Supervisor::Become(pid_t parent) const {
  // Who is left alone ends: nobody would restart it, or keep its memory.
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(1);
  const auto count = static_cast<int>(kept_.all().size());
  std::vector<int> moved;
  std::string names;
  for (const auto& [name, fd] : kept_.all()) {
    // Out of the way of where they are to be.
    const int copy = fcntl(fd.get(), F_DUPFD_CLOEXEC, kFirstPassed + count);
    if (copy < 0) _exit(1);
    moved.push_back(copy);
    absl::StrAppend(&names, names.empty() ? "" : ":", name);
  }
  for (int i = 0; i < count; ++i) {
    if (dup2(moved[static_cast<size_t>(i)], kFirstPassed + i) < 0) _exit(1);
  }
  setenv("NOTIFY_SOCKET", socket_.name().c_str(), 1);
  setenv("FDSTORE", absl::StrCat(options_.descriptors_max).c_str(), 1);
  for (const char* variable : {"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC"})
    unsetenv(variable);
  if (count > 0) {
    setenv("LISTEN_FDS", absl::StrCat(count).c_str(), 1);
    setenv("LISTEN_PID", absl::StrCat(getpid()).c_str(), 1);
    setenv("LISTEN_FDNAMES", names.c_str(), 1);
  }
  std::vector<char*> argv;
  for (const std::string& word : options_.command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  sigprocmask(SIG_SETMASK, &old_mask_, nullptr);
  execvp(argv[0], argv.data());
  _exit(kExitNoProgram);
}

void Supervisor::HearAll() {
  while (std::optional<Notification> notification = socket_.Receive()) {
    // Anybody may send; a descriptor of somebody else would end up in our child.
    if (child_ == 0 || notification->sender != child_) continue;
    const KeptDescriptors::Heard heard = kept_.Apply(*std::move(notification));
    was_ready_ |= heard.is_ready;
    if (!heard.status.ok()) Log(LogLevel::kWarning, "not kept", {{"status", heard.status}});
  }
}

void Supervisor::OnSignals() {
  signalfd_siginfo signal;
  while (read(signals_.get(), &signal, sizeof signal) == sizeof signal)
    OnSignal(static_cast<int>(signal.ssi_signo));
}

void Supervisor::OnSignal(int signal) {
  if (signal == SIGCHLD) return Reap();
  if (signal == SIGHUP) {
    if (child_ > 0) kill(child_, SIGHUP);
    return;
  }
  must_restart_ = signal == SIGUSR1 && !is_ending_;
  is_ending_ |= signal != SIGUSR1;
  if (child_ > 0) {
    kill(child_, SIGTERM);
  } else if (is_ending_) {
    exit_code_ = 0;
  }
}

void Supervisor::Reap() {
  int status = 0;
  // As the first process of a container we are everybody's parent.
  for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
    if (pid != child_) continue;
    HearAll();
    child_ = 0;
    OnEnded(status);
  }
}

void Supervisor::OnEnded(int status) {
  const bool was_killed = WIFSIGNALED(status);
  const int code = was_killed ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  const bool may_restart =
      was_killed || (code != 0 && code != kExitBadConfiguration && code != kExitNoProgram);
  if (is_ending_ || (!must_restart_ && !may_restart)) {
    if (code == kExitNoProgram)
      Log(LogLevel::kError, "cannot run it", {{"program", options_.command[0]}});
    exit_code_ = code;
    return;
  }
  const absl::Duration pause = std::exchange(must_restart_, false)
                                   ? absl::ZeroDuration()
                                   : PauseAfter(absl::Now() - started_);
  Log(LogLevel::kWarning, was_killed ? "was killed, starting it again" : "ended, starting it again",
      {{"code", code}, {"pause_ms", absl::ToInt64Milliseconds(pause)}});
  start_at_ = absl::Now() + pause;
}

absl::Duration Supervisor::PauseAfter(absl::Duration lived) {
  if (was_ready_) {
    failures_ = 0;
    return lived >= kLivedLong ? absl::ZeroDuration() : kPauseMin;
  }
  const int doublings = std::min(failures_++, kDoublingsMax);
  return std::min(kPauseMax, kPauseMin * (1 << doublings));
}

}  // namespace kvstore::keep
