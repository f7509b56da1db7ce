#include "kvstore/base/trusted_path.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kvstore/base/status_macros.h"

namespace kvstore {
namespace {

constexpr int kDirectoryFlags = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;

absl::Status CheckDirectory(int fd, const std::string& path) {
  struct stat found {};
  if (fstat(fd, &found) != 0) {
    return absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  if (found.st_uid != 0 && found.st_uid != geteuid()) {
    return absl::PermissionDeniedError(
        absl::StrCat(path, ": owned by user ", found.st_uid,
                     ", who could put another directory in its place; it must belong to root or "
                     "to the daemon's user"));
  }
  const bool is_writable = (found.st_mode & (S_IWGRP | S_IWOTH)) != 0;
  if (is_writable && (found.st_mode & S_ISVTX) == 0) {
    return absl::PermissionDeniedError(
        absl::StrCat(path,
                     ": writable by group or others, who could replace what is in it; chmod "
                     "go-w it"));
  }
  return absl::OkStatus();
}

absl::Status OpenError(int directory, const std::string& name, const std::string& path) {
  const int error_number = errno;
  struct stat found {};
  if (fstatat(directory, name.c_str(), &found, AT_SYMLINK_NOFOLLOW) == 0 &&
      S_ISLNK(found.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": a symbolic link; give the path it leads to"));
  }
  const std::string text = absl::StrCat(path, ": ", std::strerror(error_number));
  return error_number == ENOENT ? absl::NotFoundError(text) : absl::FailedPreconditionError(text);
}

absl::StatusOr<std::string> ReadAll(int fd, size_t bytes_max, const std::string& path) {
  std::string bytes(bytes_max + 1, '\0');
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t rc = read(fd, bytes.data() + done, bytes.size() - done);
    if (rc < 0 && errno == EINTR) continue;
    if (rc < 0) return absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(errno)));
    if (rc == 0) break;
    done += static_cast<size_t>(rc);
  }
  if (done > bytes_max) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": larger than ", bytes_max, " bytes"));
  }
  bytes.resize(done);
  return bytes;
}

}  // namespace

absl::StatusOr<TrustedParent> OpenTrustedParent(const std::string& path) {
  if (!path.starts_with('/')) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not an absolute path"));
  }
  std::vector<std::string> names;
  for (const std::string& name : std::vector<std::string>(absl::StrSplit(path, '/'))) {
    if (name.empty() || name == ".") continue;
    if (name == "..") {
      return absl::InvalidArgumentError(absl::StrCat(path, ": has .. in it; give the plain path"));
    }
    names.push_back(name);
  }
  if (names.empty()) return absl::InvalidArgumentError("/: not a path for data");
  TrustedParent parent{.directory = UniqueFd(open("/", kDirectoryFlags)), .name = names.back()};
  names.pop_back();
  if (!parent.directory.is_open()) return absl::UnavailableError("/: cannot be opened");
  RETURN_IF_ERROR(CheckDirectory(parent.directory.get(), "/"));
  std::string so_far;
  for (const std::string& name : names) {
    absl::StrAppend(&so_far, "/", name);
    UniqueFd next(openat(parent.directory.get(), name.c_str(), kDirectoryFlags));
    if (!next.is_open()) return OpenError(parent.directory.get(), name, so_far);
    RETURN_IF_ERROR(CheckDirectory(next.get(), so_far));
    parent.directory = std::move(next);
  }
  return parent;
}

absl::StatusOr<std::string> ReadSecretFile(const std::string& path, size_t bytes_max) {
  ASSIGN_OR_RETURN(const TrustedParent parent, OpenTrustedParent(path));
  // O_NONBLOCK: a pipe in its place must not hold us up.
  const UniqueFd file(openat(parent.directory.get(), parent.name.c_str(),
                             O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!file.is_open() && errno == EACCES) {
    return absl::PermissionDeniedError(absl::StrCat(path, ": ", std::strerror(EACCES)));
  }
  if (!file.is_open()) return OpenError(parent.directory.get(), parent.name, path);
  struct stat found {};
  if (fstat(file.get(), &found) != 0) {
    return absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  if (!S_ISREG(found.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": not a regular file"));
  }
  if (found.st_uid != geteuid()) {
    return absl::PermissionDeniedError(absl::StrCat(path, ": owned by user ", found.st_uid,
                                                    ", the daemon runs as user ", geteuid()));
  }
  if ((found.st_mode & 077) != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat(path, ": group or others have access; chmod 400 it"));
  }
  if (found.st_nlink != 1) {
    return absl::PermissionDeniedError(
        absl::StrCat(path, ": has ", found.st_nlink, " names (hard links); keep one"));
  }
  return ReadAll(file.get(), bytes_max, path);
}

}  // namespace kvstore
