// Another program, run as a child process.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace kvstore::bench {

// Killed when its owner goes. Confined to one thread.
class Program {
 public:
  // `arguments[0]` is its path. Standard output and error are appended to the files.
  // Errors: NotFound, there is no such program; Unavailable.
  static absl::StatusOr<Program> Start(const std::vector<std::string>& arguments,
                                       const std::string& output_path,
                                       const std::string& error_path);
  // With pipes: the child reads `input` and writes `output`, which stay the caller's to close.
  static absl::StatusOr<Program> StartPiped(const std::vector<std::string>& arguments, int input,
                                            int output, const std::string& error_path);
  Program(Program&& other) noexcept;
  Program& operator=(Program&& other) noexcept;
  ~Program();

  pid_t pid() const { return pid_; }
  // Errors: Unavailable, it ended by a signal or not with 0; DeadlineExceeded, it still runs.
  absl::Status Wait(absl::Duration timeout);
  bool HasEnded();
  void Signal(int number);
  void Kill();

 private:
  explicit Program(pid_t pid) : pid_(pid) {}
  bool Poll();

  pid_t pid_ = 0;  // 0: moved from
  bool has_ended_ = false;
  int wait_status_ = 0;
};

// The end of a text file, for messages.
std::string LastLines(const std::string& path);
// The whole file. Errors: Unavailable.
absl::StatusOr<std::string> ReadFile(const std::string& path);

}  // namespace kvstore::bench
