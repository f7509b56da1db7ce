// A real kvstored in a folder of its own, for tests from outside.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kvstore/client/client.h"
#include "kvstore/v1/admin.pb.h"

namespace kvstore::testing {

struct DaemonOptions {
  std::vector<std::string> sets;       // section.key=value
  uint64_t open_files = 0;             // RLIMIT_NOFILE, soft and hard; 0: as it is
  std::vector<std::string> arguments;  // beside --set
  uint64_t locked_bytes = 0;           // RLIMIT_MEMLOCK, and no right to exceed it; 0: as it is
  std::string memory_cgroup;           // folder of a memory cgroup to run in; empty: ours
  // Runs under kvkeep, with these arguments. Signals go to kvkeep then; daemon_pid() is its child.
  std::optional<std::vector<std::string>> keeper;
};

class DaemonProcess {
 public:
  DaemonProcess();   // makes the folder, starts nothing
  ~DaemonProcess();  // SIGKILL; removes the folder
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;

  // Starts it and waits until it answers. A failed start is a fatal test failure with its log.
  void Start(const DaemonOptions& options = {});
  // With a keeper: the arguments of its next kvstored, and what Start() waits for.
  void SetArguments(const DaemonOptions& options);
  void WaitUntilAnotherAnswers(pid_t than);
  // Starts it and waits until it exits; its exit code. Of `options` only the limits are used.
  int RunToExit(const std::vector<std::string>& arguments, const DaemonOptions& options = {});
  void Signal(int signal) const;
  // Waits for the end. The exit code, or 128 + signal; -1: not within `timeout`.
  int WaitExit(absl::Duration timeout);
  void KillHard();  // SIGKILL, and waits

  std::string socket_path() const { return folder_ + "/kv.sock"; }
  std::string target() const { return "unix:" + socket_path(); }
  const std::string& folder() const { return folder_; }
  pid_t pid() const { return pid_; }
  pid_t daemon_pid() const;  // of kvstored itself; -1: not running now
  std::string Log() const;   // what it wrote to stderr and stdout
  uint64_t ResidentBytes() const;
  uint64_t OpenFiles() const;

  std::unique_ptr<client::Client> Connect(client::ClientOptions options = {}) const;
  v1::StatusResponse Status() const;
  // Empties a tier of a namespace's blocks that lie in another one too.
  v1::EvictResponse Evict(const std::string& ns, v1::Tier tier) const;

 private:
  void WaitUntilItAnswers();
  void Spawn(const std::vector<std::string>& arguments, const DaemonOptions& options);

  std::string folder_;
  pid_t pid_ = -1;
  bool has_keeper_ = false;
};

// A process that has ended but that its parent has not asked for does not run.
bool IsRunning(pid_t pid);

// Waits until `condition` holds, looking every 5 ms; false: not within `timeout`.
template <class Condition>
bool Eventually(absl::Duration timeout, Condition condition) {
  for (const absl::Time end = absl::Now() + timeout; absl::Now() < end;
       absl::SleepFor(absl::Milliseconds(5))) {
    if (condition()) return true;
  }
  return condition();
}

// A namespace of small pages.
NamespaceSpec SmallSpec(uint32_t num_slices = 4, uint32_t slice_bytes = 16384);
// Tokens of `blocks` whole blocks; `seed` tells prefixes apart.
std::vector<uint32_t> Tokens(const NamespaceSpec& spec, size_t blocks, uint32_t seed);
// The bytes that a block must have: a function of its hash alone, so that any reader can check any
// page.
std::vector<std::byte> PageBytes(const NamespaceSpec& spec, const BlockHash& hash);
std::vector<std::byte> PagesBytes(const NamespaceSpec& spec, std::span<const BlockHash> hashes);

}  // namespace kvstore::testing
