// The policies by name, with their options.
#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvstore::policy {

// When a colder tier gets its copy of a block: at once, or when the hotter tier evicts it.
enum class WriteMode { kThrough, kBack };
// "through", "back". Errors: InvalidArgument naming the valid ones.
absl::StatusOr<WriteMode> ParseWriteMode(std::string_view name);
std::string_view WriteModeName(WriteMode mode);

struct PolicyOptions {
  WriteMode write_to_dram = WriteMode::kThrough;  // from gpu
  WriteMode write_to_nvme = WriteMode::kThrough;  // from dram
  // Write-back tiers start demoting when this share of their slots is used, and stop at the lower
  // one, so that Reserve() finds room without waiting for a disk.
  double high_watermark = 0.95;
  double low_watermark = 0.90;

  // Errors: InvalidArgument naming the option.
  absl::Status Validate() const;
};

}  // namespace kvstore::policy
