// A kvstored of our own: the other side of every figure that is two processes in production.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/client/client.h"
#include "tools/kvbench/program.h"
#include "tools/kvbench/work_folder.h"

namespace kvstore::bench {

struct DaemonOptions {
  std::string bin_dir;
  std::string work_dir;
  uint64_t dram_bytes = 0;
  uint64_t gpu_bytes = 0;  // 0: no such tier
  std::string gpu_device = "host";
  uint64_t nvme_bytes = 0;  // 0: no such tier; otherwise in the daemon's folder
};

// What its Admin service says of one tier.
struct TierUse {
  uint64_t pages = 0;
  uint64_t in_flight = 0;
  uint64_t read_bytes = 0;
  uint64_t write_bytes = 0;
};

// Killed when its owner goes; its folder goes too. Confined to one thread.
class Daemon {
 public:
  // Waits until it answers. Errors: NotFound, no kvstored; Unavailable, with the end of its log.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const DaemonOptions& options);

  const std::string& target() const { return target_; }
  pid_t pid() const { return program_->pid(); }
  double CpuSeconds() const;

  absl::StatusOr<std::unique_ptr<client::Client>> Connect();
  absl::StatusOr<TierUse> Use(client::Tier tier);
  absl::StatusOr<bool> IsRecovering();
  // Removes the namespace's copies in `tier` that are not the last ones. Returns how many stay.
  absl::StatusOr<uint64_t> Evict(const std::string& ns, client::Tier tier);
  // All namespaces.
  absl::Status EvictAll(client::Tier tier);
  // Drops every block of every namespace.
  absl::Status ClearAll();

  absl::Status Stop();
  // As Start() on the same folders, without waiting for an answer.
  absl::Status Launch();

 private:
  Daemon(DaemonOptions options, WorkFolder folder);
  absl::Status WaitUntilServing();

  const DaemonOptions options_;
  const WorkFolder folder_;
  const std::string target_;
  std::optional<Program> program_;
};

}  // namespace kvstore::bench
