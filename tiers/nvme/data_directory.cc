#include "tiers/nvme/data_directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <span>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/trusted_path.h"
#include "kvstore/base/units.h"

namespace kvstore::tiers {
namespace {

constexpr mode_t kFileMode = 0600;
constexpr char kSuperblockName[] = "superblock";
constexpr char kSuperblockNewName[] = "superblock.new";
constexpr char kLockName[] = "lock";
constexpr char kPagesName[] = "pages";
constexpr char kProbeName[] = "probe";
constexpr char kSecretsName[] = "secrets";
constexpr char kSecretsNewName[] = "secrets.new";
constexpr off_t kSecretsBytesMax = 64 << 20;

// Closes at the end of a scope.
struct ScopedFd {
  int fd = -1;
  ~ScopedFd() {
    if (fd >= 0) close(fd);
  }
};

// All of `bytes`; false: errno, or EIO for a short file.
template <typename Call>
bool Whole(Call call, int fd, std::byte* data, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t rc = call(fd, data + done, bytes - done, static_cast<off_t>(done));
    if (rc < 0 && errno == EINTR) continue;
    if (rc == 0) errno = EIO;
    if (rc <= 0) return false;
    done += static_cast<size_t>(rc);
  }
  return true;
}

std::string LockOwner(int fd) {
  char text[kLockBytesMax + 1] = {};
  const ssize_t bytes = pread(fd, text, kLockBytesMax, 0);
  size_t digits = 0;
  while (bytes > 0 && digits < static_cast<size_t>(bytes) && text[digits] >= '0' &&
         text[digits] <= '9') {
    ++digits;
  }
  return digits == 0 ? "unknown" : std::string(text, digits);
}

}  // namespace

absl::Status DataDirectory::Error(const char* what, int error_number) const {
  const std::string text =
      absl::StrCat("nvme directory ", path_, ": ", what, ": ", std::strerror(error_number));
  switch (error_number) {
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(
          absl::StrCat(text, "; it must belong to the daemon's user and be writable by it"));
    case EROFS:
      return absl::PermissionDeniedError(
          absl::StrCat(text, "; mount the file system writable or choose another directory"));
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(
          absl::StrCat(text, "; free space there or lower the capacity"));
    case ENOENT:
      return absl::FailedPreconditionError(absl::StrCat(text, "; create its parent directory"));
    default:
      return absl::UnavailableError(text);
  }
}

absl::StatusOr<std::unique_ptr<DataDirectory>> DataDirectory::Open(const std::string& path) {
  std::unique_ptr<DataDirectory> directory(new DataDirectory(path));
  RETURN_IF_ERROR(directory->OpenDirectory());
  // Looked at before the lock file is made, so that a directory that is not ours stays untouched.
  RETURN_IF_ERROR(directory->LoadSuperblock());
  if (!directory->superblock_) RETURN_IF_ERROR(directory->RefuseForeignFiles());
  RETURN_IF_ERROR(directory->Lock());
  // Again: its former owner may have changed it before it let go.
  RETURN_IF_ERROR(directory->LoadSuperblock());
  return directory;
}

DataDirectory::~DataDirectory() {
  if (pages_fd_ >= 0) close(pages_fd_);
  if (lock_fd_ >= 0) close(lock_fd_);
  if (dir_fd_ >= 0) close(dir_fd_);
}

absl::Status DataDirectory::OpenDirectory() {
  auto parent = OpenTrustedParent(std::filesystem::absolute(path_).string());
  if (absl::IsNotFound(parent.status())) return Error("open", ENOENT);
  if (!parent.ok()) {
    return absl::Status(parent.status().code(),
                        absl::StrCat("nvme directory ", path_, ": ", parent.status().message()));
  }
  const int parent_fd = parent->directory.get();
  const char* name = parent->name.c_str();
  if (mkdirat(parent_fd, name, 0700) != 0 && errno != EEXIST) return Error("mkdir", errno);
  struct stat found {};
  if (fstatat(parent_fd, name, &found, AT_SYMLINK_NOFOLLOW) != 0) return Error("stat", errno);
  if (!S_ISDIR(found.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat("nvme directory ", path_, ": ",
                     S_ISLNK(found.st_mode) ? "a symbolic link; give the directory it points to"
                                            : "not a directory"));
  }
  dir_fd_ = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (dir_fd_ < 0) return Error("open", errno);
  if (fstat(dir_fd_, &found) != 0) return Error("stat", errno);
  if (found.st_uid != geteuid()) {
    return absl::PermissionDeniedError(absl::StrCat("nvme directory ", path_, ": owned by user ",
                                                    found.st_uid, ", the daemon runs as user ",
                                                    geteuid(), "; change its owner"));
  }
  if ((found.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("nvme directory ", path_, ": writable by group or others; chmod 700 it"));
  }
  return absl::OkStatus();
}

// A file of ours that was opened in the directory: not a pipe, and not another name of a file that
// somebody wants to see overwritten.
absl::Status DataDirectory::CheckFile(const char* name, int fd) const {
  struct stat found {};
  if (fstat(fd, &found) != 0) return Error(name, errno);
  if (!S_ISREG(found.st_mode) || found.st_nlink != 1 || found.st_uid != geteuid()) {
    return absl::FailedPreconditionError(
        absl::StrCat("nvme directory ", path_, ": ", name,
                     " is not a regular file of ours with one name; empty the directory"));
  }
  return absl::OkStatus();
}

absl::Status DataDirectory::Lock() {
  lock_fd_ = openat(dir_fd_, kLockName, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, kFileMode);
  if (lock_fd_ < 0) return Error("lock file", errno);
  RETURN_IF_ERROR(CheckFile(kLockName, lock_fd_));
  if (flock(lock_fd_, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return Error("flock", errno);
    return absl::FailedPreconditionError(absl::StrCat("nvme directory ", path_,
                                                      ": in use by process ", LockOwner(lock_fd_),
                                                      "; stop it or choose another directory"));
  }
  const std::string pid = absl::StrCat(getpid(), "\n");
  if (ftruncate(lock_fd_, 0) != 0 ||
      pwrite(lock_fd_, pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    return Error("lock file", errno);
  }
  return absl::OkStatus();
}

absl::Status DataDirectory::LoadSuperblock() {
  superblock_.reset();
  std::array<std::byte, kSuperblockBytes> bytes{};
  {
    // O_NONBLOCK: a pipe in its place must not hold us up.
    ScopedFd file{openat(dir_fd_, kSuperblockName, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)};
    if (file.fd < 0) return errno == ENOENT ? absl::OkStatus() : Error("superblock", errno);
    RETURN_IF_ERROR(CheckFile(kSuperblockName, file.fd));
    if (!Whole(pread, file.fd, bytes.data(), bytes.size())) return Error("superblock", errno);
  }
  auto superblock = DecodeSuperblock(bytes);
  if (!superblock.ok()) {
    return absl::Status(
        superblock.status().code(),
        absl::StrCat("nvme directory ", path_, ": ", std::string(superblock.status().message()),
                     "; nothing was changed. Use the program that wrote it, another directory, or "
                     "empty this one to lose its pages"));
  }
  superblock_ = *superblock;
  return absl::OkStatus();
}

absl::Status DataDirectory::RefuseForeignFiles() {
  const int fd = openat(dir_fd_, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return Error("open", errno);
  DIR* dir = fdopendir(fd);
  if (dir == nullptr) {
    close(fd);
    return Error("list", errno);
  }
  std::string foreign;
  while (const dirent* item = readdir(dir)) {
    const std::string_view name = item->d_name;
    // What a first start that was killed leaves, and what mkfs makes.
    if (name == "." || name == ".." || name == kLockName || name == kSuperblockNewName ||
        name == "lost+found") {
      continue;
    }
    foreign = name;
    break;
  }
  closedir(dir);
  if (foreign.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("nvme directory ", path_, ": not empty and not one of ours (holds ", foreign,
                   "); choose an empty or a new directory"));
}

absl::Status DataDirectory::Replace(const char* name, const char* new_name,
                                    std::string_view bytes) {
  {
    ScopedFd file{openat(dir_fd_, new_name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC,
                         kFileMode)};
    auto* data = const_cast<std::byte*>(reinterpret_cast<const std::byte*>(bytes.data()));
    if (file.fd < 0 || !Whole(pwrite, file.fd, data, bytes.size()) || fsync(file.fd) != 0) {
      return Error(new_name, errno);
    }
  }
  if (renameat(dir_fd_, new_name, dir_fd_, name) != 0 || fsync(dir_fd_) != 0) {
    return Error(name, errno);
  }
  return absl::OkStatus();
}

absl::Status DataDirectory::SaveSuperblock(const Superblock& superblock) {
  const auto bytes = EncodeSuperblock(superblock);
  RETURN_IF_ERROR(Replace(kSuperblockName, kSuperblockNewName,
                          {reinterpret_cast<const char*>(bytes.data()), bytes.size()}));
  superblock_ = superblock;
  return absl::OkStatus();
}

absl::StatusOr<std::string> DataDirectory::LoadSecrets() {
  ScopedFd file{openat(dir_fd_, kSecretsName, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)};
  if (file.fd < 0 && errno == ENOENT) return std::string();
  if (file.fd < 0) return Error(kSecretsName, errno);
  RETURN_IF_ERROR(CheckFile(kSecretsName, file.fd));
  struct stat found {};
  if (fstat(file.fd, &found) != 0) return Error(kSecretsName, errno);
  if (found.st_size > kSecretsBytesMax) return Error(kSecretsName, EFBIG);
  std::string bytes(static_cast<size_t>(found.st_size), '\0');
  if (!Whole(pread, file.fd, reinterpret_cast<std::byte*>(bytes.data()), bytes.size())) {
    return Error(kSecretsName, errno);
  }
  return bytes;
}

absl::Status DataDirectory::SaveSecrets(std::string_view bytes) {
  ScopedFd old{openat(dir_fd_, kSecretsName, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)};
  RETURN_IF_ERROR(Replace(kSecretsName, kSecretsNewName, bytes));
  struct stat found {};
  if (old.fd < 0 || fstat(old.fd, &found) != 0 || found.st_nlink != 0) return absl::OkStatus();
  // What was erased must not lie on in free blocks: where the file system writes in place it is
  // gone now.
  std::string zeros(static_cast<size_t>(found.st_size), '\0');
  if (!Whole(pwrite, old.fd, reinterpret_cast<std::byte*>(zeros.data()), zeros.size()) ||
      fsync(old.fd) != 0) {
    return Error("overwriting old secrets", errno);
  }
  return absl::OkStatus();
}

absl::Status DataDirectory::PreparePages(uint64_t bytes) {
  constexpr int kFlags = O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC;
  pages_fd_ = openat(dir_fd_, kPagesName, kFlags | O_DIRECT, kFileMode);
  if (pages_fd_ < 0 && errno == EINVAL) {
    is_direct_ = false;
    pages_fd_ = openat(dir_fd_, kPagesName, kFlags, kFileMode);
  }
  if (pages_fd_ < 0) return Error("pages", errno);
  RETURN_IF_ERROR(CheckFile(kPagesName, pages_fd_));
  struct stat found {};
  if (fstat(pages_fd_, &found) != 0) return Error("pages", errno);
  const auto old_bytes = static_cast<uint64_t>(found.st_size);
  const auto blocks_bytes = static_cast<uint64_t>(found.st_blocks) * 512;
  if (old_bytes > bytes && ftruncate(pages_fd_, static_cast<off_t>(bytes)) != 0) {
    return Error("shrinking pages", errno);
  }
  if (old_bytes >= bytes && blocks_bytes >= bytes) return absl::OkStatus();
  if (fallocate(pages_fd_, 0, 0, static_cast<off_t>(bytes)) == 0) return absl::OkStatus();
  const int error_number = errno;
  // Space taken by half a file helps nobody. If this fails as well there is nothing left to try.
  if (ftruncate(pages_fd_, static_cast<off_t>(std::min(old_bytes, bytes))) != 0) errno = 0;
  if (error_number == EOPNOTSUPP) {
    return absl::FailedPreconditionError(
        absl::StrCat("nvme directory ", path_,
                     ": the file system cannot preallocate (fallocate); use ext4, xfs or btrfs"));
  }
  if (error_number == ENOSPC || error_number == EDQUOT) {
    struct statvfs space {};
    const uint64_t free_bytes =
        fstatvfs(dir_fd_, &space) == 0 ? uint64_t{space.f_bavail} * space.f_frsize : 0;
    return absl::ResourceExhaustedError(absl::StrCat(
        "nvme directory ", path_, ": ", FormatBytes(bytes - std::min(old_bytes, bytes)),
        " more are needed for pages, ", FormatBytes(free_bytes),
        " are free; lower the capacity or free space there"));
  }
  return Error("preallocating pages", error_number);
}

void DataDirectory::Abandon() {
  unlinkat(dir_fd_, kPagesName, 0);
  unlinkat(dir_fd_, kSuperblockName, 0);
}

absl::Status DataDirectory::SyncPages() {
  return fdatasync(pages_fd_) == 0 ? absl::OkStatus() : Error("fdatasync of pages", errno);
}

absl::Status DataDirectory::ProbeWrite() {
  ScopedFd file{openat(dir_fd_, kProbeName, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC,
                       kFileMode)};
  std::array<std::byte, 4096> bytes{};
  const bool is_ok =
      file.fd >= 0 && Whole(pwrite, file.fd, bytes.data(), bytes.size()) && fsync(file.fd) == 0;
  const int error_number = errno;
  unlinkat(dir_fd_, kProbeName, 0);
  return is_ok ? absl::OkStatus() : Error("writing", error_number);
}

}  // namespace kvstore::tiers
