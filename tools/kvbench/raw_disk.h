// Plain io_uring on one file: O_DIRECT, registered file and buffers, a fixed depth, no checksums.
// The ceiling of the NVMe tier.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tools/kvbench/ceilings.h"

struct io_uring;

namespace kvstore::bench {

enum class DiskOperation : uint8_t { kRead, kWrite };

// Confined to one thread.
class RawDisk {
 public:
  struct Options {
    std::string path;
    uint32_t depth = 32;
    uint64_t operation_bytes = 0;  // a multiple of 4096
  };
  // Errors: Unavailable, the file cannot be opened with O_DIRECT or io_uring is forbidden.
  static absl::StatusOr<RawDisk> Open(const Options& options);
  RawDisk(RawDisk&&) = default;
  RawDisk& operator=(RawDisk&&) = default;
  ~RawDisk();

  // Seconds of one operation at each offset, `depth` at a time. Writes put random bytes there.
  // Errors: Unavailable, an operation failed or was short.
  absl::StatusOr<double> RunSeconds(DiskOperation operation, std::span<const uint64_t> offsets);

 private:
  struct CloseRing {
    void operator()(io_uring* ring) const;
  };
  RawDisk(Options options, UniqueFd file, SetMemory buffers);
  void Prepare(DiskOperation operation, uint32_t slot, uint64_t offset);

  Options options_;
  UniqueFd file_;
  SetMemory buffers_;
  std::unique_ptr<io_uring, CloseRing> ring_;
};

}  // namespace kvstore::bench
