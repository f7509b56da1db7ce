// Supervisor runs one program, holds what it is given to keep, and starts the program again, with
// that, when it died.
//
//            start                exit, killed: at once, or after a pause if it never was ready
//   begin ----------> running ------------------------------------------------> running
//                        | exit 0, 2 (configuration) or 127 (no such program), or SIGTERM to us
//                        v
//                       end
//
// Single-threaded: one per process.
#pragma once

#include <sys/types.h>

#include <csignal>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tools/kvkeep/kept_descriptors.h"
#include "tools/kvkeep/notify_socket.h"

namespace kvstore::keep {

class Supervisor {
 public:
  struct Options {
    std::vector<std::string> command;
    size_t descriptors_max = 4096;
  };
  static absl::StatusOr<Supervisor> Create(Options options);

  // Until the program has ended for good. The exit code for us: its own, or 128 + signal.
  int Run();

 private:
  Supervisor(Options options, NotifySocket socket, UniqueFd signals, const sigset_t& old_mask)
      : options_(std::move(options)),
        socket_(std::move(socket)),
        signals_(std::move(signals)),
        old_mask_(old_mask),
        kept_(options_.descriptors_max) {}

  void Start();
  [[noreturn]] void Become(pid_t parent) const;  // in the child
  void HearAll();
  void OnSignals();
  void OnSignal(int signal);
  void Reap();
  void OnEnded(int status);
  absl::Duration PauseAfter(absl::Duration lived);

  const Options options_;
  NotifySocket socket_;
  UniqueFd signals_;
  sigset_t old_mask_;
  KeptDescriptors kept_;
  pid_t child_ = 0;  // 0: not running
  absl::Time started_;
  bool was_ready_ = false;
  int failures_ = 0;  // starts that did not get ready, in a row
  absl::Time start_at_ = absl::InfiniteFuture();
  bool is_ending_ = false;
  bool must_restart_ = false;  // SIGUSR1
  std::optional<int> exit_code_;
};

}  // namespace kvstore::keep
