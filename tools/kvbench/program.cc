#include "tools/kvbench/program.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

extern char** environ;

namespace kvstore::bench {
namespace {

constexpr absl::Duration kPollEvery = absl::Milliseconds(2);
constexpr size_t kLastBytes = 2000;
// Not O_CLOEXEC: the file is opened as the child's descriptor 1 or 2 itself, and must stay.
constexpr int kAppend = O_WRONLY | O_CREAT | O_APPEND;

absl::StatusOr<pid_t> Spawn(const std::vector<std::string>& arguments,
                            const posix_spawn_file_actions_t& files) {
  if (access(arguments[0].c_str(), X_OK) != 0) {
    return absl::NotFoundError(
        absl::StrCat(arguments[0], " is no program; --bin DIR says where it is"));
  }
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, argv[0], &files, nullptr, argv.data(), environ);
  if (error == 0) return pid;
  return absl::UnavailableError(absl::StrCat(arguments[0], ": ", std::strerror(error)));
}

}  // namespace

absl::StatusOr<Program> Program::Start(const std::vector<std::string>& arguments,
                                       const std::string& output_path,
                                       const std::string& error_path) {
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, output_path.c_str(), kAppend, 0600);
  posix_spawn_file_actions_addopen(&files, STDERR_FILENO, error_path.c_str(), kAppend, 0600);
  absl::StatusOr<pid_t> pid = Spawn(arguments, files);
  posix_spawn_file_actions_destroy(&files);
  if (!pid.ok()) return pid.status();
  return Program(*pid);
}

absl::StatusOr<Program> Program::StartPiped(const std::vector<std::string>& arguments, int input,
                                            int output, const std::string& error_path) {
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, input, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&files, output, STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&files, STDERR_FILENO, error_path.c_str(), kAppend, 0600);
  absl::StatusOr<pid_t> pid = Spawn(arguments, files);
  posix_spawn_file_actions_destroy(&files);
  if (!pid.ok()) return pid.status();
  return Program(*pid);
}

Program::Program(Program&& other) noexcept
    : pid_(std::exchange(other.pid_, 0)),
      has_ended_(other.has_ended_),
      wait_status_(other.wait_status_) {}

Program& Program::operator=(Program&& other) noexcept {
  if (this != &other) {
    Kill();
    pid_ = std::exchange(other.pid_, 0);
    has_ended_ = other.has_ended_;
    wait_status_ = other.wait_status_;
  }
  return *this;
}

Program::~Program() { Kill(); }

bool Program::Poll() {
  if (!has_ended_) has_ended_ = waitpid(pid_, &wait_status_, WNOHANG) == pid_;
  return has_ended_;
}

bool Program::HasEnded() { return Poll(); }

absl::Status Program::Wait(absl::Duration timeout) {
  const absl::Time end = absl::Now() + timeout;
  while (!Poll()) {
    if (absl::Now() > end) return absl::DeadlineExceededError("it still runs");
    absl::SleepFor(kPollEvery);
  }
  if (WIFEXITED(wait_status_) && WEXITSTATUS(wait_status_) == 0) return absl::OkStatus();
  if (WIFSIGNALED(wait_status_)) {
    return absl::UnavailableError(absl::StrCat("it ended by signal ", WTERMSIG(wait_status_)));
  }
  return absl::UnavailableError(absl::StrCat("it ended with ", WEXITSTATUS(wait_status_)));
}

void Program::Signal(int number) {
  if (pid_ != 0 && !Poll()) kill(pid_, number);
}

void Program::Kill() {
  if (pid_ == 0 || Poll()) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, &wait_status_, 0);
  has_ended_ = true;
}

std::string LastLines(const std::string& path) {
  std::string text = ReadFile(path).value_or("");
  if (text.size() > kLastBytes) text.erase(0, text.size() - kLastBytes);
  return text;
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) return absl::UnavailableError(absl::StrCat("cannot read ", path));
  return text.str();
}

}  // namespace kvstore::bench
