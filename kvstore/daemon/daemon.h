// The daemon: wiring of core, tiers, store and service, and the order in which they start and stop.
//
//   core thread -> tiers (gpu, dram, nvme) -> store (recovery begins) -> service lets clients in
//   SIGTERM: health NOT_SERVING -> store drains (no more saves, moves finish) -> service -> tiers
//   -> store -> core thread
//
// Threads: confined to the main thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/daemon/config.h"

namespace kvstore::daemon {

// What --version prints after the program's name.
std::string VersionText();

// Reads the files that `config` names and that decide who may connect. For --check-config.
// Errors: as the loaders of kvstore/service give them, with the file's name.
absl::Status CheckFiles(const Config& config);

class Daemon {
 public:
  // Opens tiers and sockets and begins to serve; recovery goes on in the background.
  // Errors: whatever keeps it from starting: a socket or folder in use, no memory, a bad folder.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(LoadedConfig config);
  ~Daemon();  // Stop() with no time to drain

  // Takes over the keys that can change while running; names the others in the log.
  void Reload(const LoadedConfig& fresh);
  // Reads the tenants file and the certificates again. What is wrong with one is logged and shown
  // as degraded until a later reload succeeds; its old content stays.
  void ReloadAccess();
  // Drains for at most `drain_time`, then ends everything. Returns what was not finished in time,
  // OK if nothing.
  absl::Status Stop(absl::Duration drain_time);

 private:
  struct State;
  explicit Daemon(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace kvstore::daemon
