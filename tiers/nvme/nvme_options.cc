#include "tiers/nvme/nvme_options.h"

#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "kvstore/base/units.h"
#include "tiers/nvme/superblock.h"

namespace kvstore::tiers {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kGiB = uint64_t{1} << 30;
constexpr uint64_t kExtentBytesMin = 64 << 10;
constexpr uint64_t kExtentBytesMax = 64 * kGiB;
constexpr uint64_t kIndexBytesMin = 4 * kMiB;

}  // namespace

absl::Status NvmeOptions::Validate() const {
  if (dirs.empty() || dirs.size() > 64) {
    return absl::InvalidArgumentError(
        absl::StrCat("nvme: ", dirs.size(), " directories; valid: 1 to 64"));
  }
  for (size_t i = 0; i < dirs.size(); ++i) {
    if (dirs[i].empty()) return absl::InvalidArgumentError("nvme: a directory name is empty");
    for (size_t j = 0; j < i; ++j) {
      if (dirs[i] == dirs[j]) {
        return absl::InvalidArgumentError(absl::StrCat("nvme: ", dirs[i], " is given twice"));
      }
    }
  }
  if (encrypt.empty() != key_file.empty()) {
    return absl::InvalidArgumentError(
        "nvme: namespaces to encrypt and a key file are given together or not at all");
  }
  if (extent_bytes != 0 && (extent_bytes % 4096 != 0 || extent_bytes < kExtentBytesMin ||
                            extent_bytes > kExtentBytesMax)) {
    return absl::InvalidArgumentError(
        absl::StrCat("nvme: extent size ", extent_bytes,
                     "; valid: a multiple of 4096 from 64 KiB to 64 GiB, or 0"));
  }
  if (index_bytes != 0 && index_bytes < kIndexBytesMin) {
    return absl::InvalidArgumentError(
        absl::StrCat("nvme: index size ", index_bytes, "; valid: at least 4 MiB, or 0"));
  }
  if (piece_bytes == 0 || piece_bytes % 4096 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("nvme: piece_bytes ", piece_bytes, "; valid: a multiple of 4096"));
  }
  // One more: the probe of a device.
  return transfer::FileMover::Options{.queue_depth = queue_depth, .inflight_max = inflight_max + 1}
      .Validate();
}

absl::StatusOr<NvmeLayout> PlanLayout(const NvmeOptions& options, uint64_t stored_extent_bytes) {
  NvmeLayout layout;
  const uint64_t capacity = options.capacity_bytes;
  const uint64_t num_dirs = options.dirs.size();
  layout.extent_bytes = options.extent_bytes;
  if (stored_extent_bytes != 0) {
    if (options.extent_bytes != 0 && options.extent_bytes != stored_extent_bytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "nvme: the directory was made with extents of ", FormatBytes(stored_extent_bytes),
          ", not ", FormatBytes(options.extent_bytes),
          "; set that size, or empty the directory to lose its pages"));
    }
    layout.extent_bytes = stored_extent_bytes;
  }
  if (layout.extent_bytes == 0) {
    layout.extent_bytes = std::clamp(std::bit_floor(capacity / 32), 16 * kMiB, kGiB);
  }
  layout.index_bytes = options.index_bytes != 0 ? options.index_bytes
                                                : std::clamp(capacity / 32, 32 * kMiB, 8 * kGiB);
  const uint64_t overhead = layout.index_bytes + num_dirs * kDirectoryBytesMax;
  const uint64_t needed = overhead + num_dirs * layout.extent_bytes;
  if (capacity < needed) {
    return absl::InvalidArgumentError(absl::StrCat(
        "nvme: a capacity of ", FormatBytes(capacity), " is too small: the index takes ",
        FormatBytes(layout.index_bytes), " and one extent in each directory ",
        FormatBytes(layout.extent_bytes), "; at least ", needed, " bytes are needed"));
  }
  const uint64_t extents = (capacity - overhead) / layout.extent_bytes / num_dirs;
  layout.extents_per_dir = static_cast<uint32_t>(std::min<uint64_t>(extents, 1 << 24));
  layout.records_max = layout.index_bytes / 2 / kIndexBytesPerRecord;
  return layout;
}

}  // namespace kvstore::tiers
