#include "kvstore/service/owned_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/unique_fd.h"

namespace kvstore::service {
namespace {

absl::Status CheckCare(const std::string& path, const struct stat& st, FileCare care) {
  const unsigned mode = st.st_mode & 07777;
  if (!S_ISREG(st.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is not a regular file"));
  }
  const bool is_ours = st.st_uid == geteuid();
  if (!is_ours && (care == FileCare::kSecret || st.st_uid != 0)) {
    return absl::FailedPreconditionError(absl::StrCat(path, " belongs to uid ", st.st_uid,
                                                      "; valid: our own uid ", geteuid(),
                                                      care == FileCare::kSecret ? "" : " or root"));
  }
  if (care == FileCare::kSecret && (mode & 0177) != 0) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "%s is a secret but has mode %04o; valid: 0400 or 0600; chmod 0400 %s", path, mode, path));
  }
  if ((mode & (S_IWGRP | S_IWOTH)) != 0) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "%s can be written by others (mode %04o); chmod go-w %s", path, mode, path));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ReadOwnedFile(const std::string& path, FileCare care) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd.is_open()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  struct stat st;
  if (fstat(fd.get(), &st) != 0) return absl::ErrnoToStatus(errno, path);
  RETURN_IF_ERROR(CheckCare(path, st, care));
  std::string content(kOwnedFileBytesMax + 1, '\0');
  size_t bytes = 0;
  while (bytes < content.size()) {
    const ssize_t got = read(fd.get(), content.data() + bytes, content.size() - bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
    if (got == 0) break;
    bytes += static_cast<size_t>(got);
  }
  if (bytes > kOwnedFileBytesMax)
    return absl::InvalidArgumentError(absl::StrCat(path, " is larger than 1 MiB"));
  content.resize(bytes);
  return content;
}

}  // namespace kvstore::service
