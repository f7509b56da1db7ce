// One directory of the NVMe tier: checked, locked, and with its extents preallocated.
//
//   DIR/lock         flock()ed while in use; holds the owner's pid
//   DIR/superblock   4096 bytes, replaced atomically (superblock.new, rename)
//   DIR/pages        the extents, one behind the other, preallocated
//   DIR/secrets      of encrypted namespaces, replaced atomically (first directory only)
//   DIR/index/       RocksDB (first directory only)
//
// Everything is opened below a descriptor of the directory, with O_NOFOLLOW; files are 0600, the
// directory 0700. Confined to one thread, except that pages_fd() may be used for I/O by any.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tiers/nvme/superblock.h"

namespace kvstore::tiers {

class DataDirectory {
 public:
  // Creates the directory if absent and locks it; changes nothing else. Its parents are trusted
  // (kvstore/base/trusted_path.h).
  // Errors, each saying what to do: FailedPrecondition, in use by another process (pid), symbolic
  // link or no directory, written by another format (left untouched), holds foreign files;
  // PermissionDenied, owned by another user, writable by group or others, or not writable by us;
  // Unavailable, other errors of the file system; DataLoss, superblock damaged.
  static absl::StatusOr<std::unique_ptr<DataDirectory>> Open(const std::string& path);
  ~DataDirectory();  // unlocks
  DataDirectory(const DataDirectory&) = delete;
  DataDirectory& operator=(const DataDirectory&) = delete;

  // nullopt: a directory never used before.
  const std::optional<Superblock>& superblock() const { return superblock_; }
  // Durable before it returns.
  absl::Status SaveSuperblock(const Superblock& superblock);

  // DIR/secrets, whole (epoch_secrets.h); empty if there is none.
  absl::StatusOr<std::string> LoadSecrets();
  // Durable before it returns; the former content is overwritten. Blocks.
  absl::Status SaveSecrets(std::string_view bytes);

  // Makes DIR/pages exactly `bytes` long, with all blocks allocated; what lies behind is given up.
  // Errors: ResourceExhausted, the file system has not enough space (says how much is free);
  // FailedPrecondition, it cannot preallocate.
  absl::Status PreparePages(uint64_t bytes);
  // After a first start that failed: leaves the directory as new.
  void Abandon();
  int pages_fd() const { return pages_fd_; }
  // False: the file system has no O_DIRECT, pages go through the page cache.
  bool is_direct() const { return is_direct_; }

  // Flushes the device's cache too. Blocks.
  absl::Status SyncPages();
  // Whether a new file can be written now. Blocks.
  absl::Status ProbeWrite();

  const std::string& path() const { return path_; }
  std::string index_path() const { return path_ + "/index"; }

 private:
  explicit DataDirectory(std::string path) : path_(std::move(path)) {}
  absl::Status OpenDirectory();
  absl::Status Lock();
  absl::Status Replace(const char* name, const char* new_name, std::string_view bytes);
  absl::Status LoadSuperblock();
  absl::Status RefuseForeignFiles();
  absl::Status CheckFile(const char* name, int fd) const;
  absl::Status Error(const char* what, int error_number) const;

  const std::string path_;
  int dir_fd_ = -1;
  int lock_fd_ = -1;
  int pages_fd_ = -1;
  bool is_direct_ = true;
  std::optional<Superblock> superblock_;
};

}  // namespace kvstore::tiers
