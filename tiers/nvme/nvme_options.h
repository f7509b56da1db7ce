// What the NVMe tier is told at start.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "transfer/io_uring/file_mover.h"

namespace kvstore::tiers {

class RecordIndex;

// What the simulation puts in the place of threads, RocksDB and the kernel. Directories and
// superblocks stay real.
struct NvmeSimulation {
  Executor* executor = nullptr;
  std::function<absl::StatusOr<std::unique_ptr<RecordIndex>>()> make_index;
  std::function<absl::StatusOr<std::unique_ptr<transfer::IoBackend>>()> make_backend;
};

struct NvmeOptions {
  // Where pages are kept; the first also holds the index. One device each is best: extents are
  // dealt out in turn. Created (0700) if absent; the parent must exist. 1 to 64.
  std::vector<std::string> dirs;
  // Bound for everything on disk, over all directories: extents, superblocks and index_bytes.
  uint64_t capacity_bytes = 0;
  // Part of capacity_bytes that is kept for the index; 0: 1/32 of it, 32 MiB to 8 GiB. Half of it
  // takes records at kIndexBytesPerRecord, the other half write-ahead log and files being
  // rewritten.
  uint64_t index_bytes = 0;
  // Bytes of one extent (a slab), a multiple of 4096; 0: 1/32 of the capacity as a power of two,
  // 16 MiB to 1 GiB. Fixed when a directory is first used.
  uint64_t extent_bytes = 0;
  // Namespaces whose pages are encrypted: names or fingerprints in hex, "*" for all. With key_file.
  std::vector<std::string> encrypt;
  std::string key_file;          // master_keys.h
  uint32_t queue_depth = 64;     // operations in the kernel, each directory
  uint32_t inflight_max = 1024;  // pages being read or written, over all directories
  // Of a page that is read by slices: at least so many bytes at a time, and at least a slice.
  uint64_t piece_bytes = uint64_t{1} << 20;
  transfer::FileMover::BackendKind backend = transfer::FileMover::BackendKind::kAuto;
  std::optional<NvmeSimulation> simulation{};

  // Errors: InvalidArgument naming the field and what is valid.
  absl::Status Validate() const;
};

// Measured: 111 bytes a record after compaction (tiers/nvme/README.md); twice that while a level is
// rewritten, and some room for tombstones.
inline constexpr uint64_t kIndexBytesPerRecord = 320;

// How a capacity is divided. All numbers exact.
struct NvmeLayout {
  uint64_t index_bytes = 0;
  uint64_t extent_bytes = 0;
  uint32_t extents_per_dir = 0;
  uint64_t records_max = 0;
};
// `stored_extent_bytes`: of the superblock, 0 for a new directory.
// Errors: InvalidArgument, the capacity is too small (says how much is needed), or extent_bytes is
// not the stored one.
absl::StatusOr<NvmeLayout> PlanLayout(const NvmeOptions& options, uint64_t stored_extent_bytes);

}  // namespace kvstore::tiers
