#include "tools/kvctl/page_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvstore::kvctl {
namespace {

absl::Status OpenError(const char* what, const std::string& path, int error) {
  return absl::InvalidArgumentError(absl::StrCat(what, " ", path, ": ", std::strerror(error)));
}

// Files that a program creates: what the umask leaves of rw-rw-rw-.
mode_t NewFileMode() {
  const mode_t mask = umask(0);
  umask(mask);
  return 0666 & ~mask;
}

}  // namespace

PageSource::PageSource(PageSource&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}

PageSource::~PageSource() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<PageSource> PageSource::Open(const std::string& path, uint64_t total_bytes) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return OpenError("cannot open", path, errno);
  PageSource source(fd, path);
  struct stat status {};
  if (fstat(fd, &status) != 0) return OpenError("cannot stat", path, errno);
  if (S_ISDIR(status.st_mode)) return OpenError("cannot read", path, EISDIR);
  if (S_ISREG(status.st_mode) && static_cast<uint64_t>(status.st_size) != total_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, " has ", status.st_size, " bytes, the blocks of these tokens have ", total_bytes));
  }
  return source;
}

absl::Status PageSource::Read(std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t got = read(fd_, out.data(), out.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      return absl::UnavailableError(
          absl::StrCat("cannot read ", path_, ": ", std::strerror(errno)));
    if (got == 0) {
      return absl::InvalidArgumentError(absl::StrCat(path_, " ends before the last page"));
    }
    out = out.subspan(static_cast<size_t>(got));
  }
  return absl::OkStatus();
}

absl::Status PageSource::ExpectEnd() {
  std::byte extra;
  ssize_t got;
  do {
    got = read(fd_, &extra, 1);
  } while (got < 0 && errno == EINTR);
  if (got <= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(path_, " goes on after the last page"));
}

PageSink::PageSink(PageSink&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      path_(std::move(other.path_)),
      temporary_path_(std::exchange(other.temporary_path_, {})) {}

PageSink::~PageSink() {
  if (fd_ >= 0) close(fd_);
  if (!temporary_path_.empty()) unlink(temporary_path_.c_str());
}

absl::StatusOr<PageSink> PageSink::Create(const std::string& path) {
  struct stat status {};
  const bool exists = stat(path.c_str(), &status) == 0;
  if (exists && !S_ISREG(status.st_mode)) {
    const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0) return OpenError("cannot write", path, errno);
    return PageSink(fd, path, "");
  }
  // A symbolic link stays one: the file that it names is replaced.
  std::string target = path;
  if (exists) {
    if (char* resolved = realpath(path.c_str(), nullptr)) {
      target = resolved;
      std::free(resolved);
    }
  }
  std::string temporary = target + ".kvctl-XXXXXX";
  const int fd = mkostemp(temporary.data(), O_CLOEXEC);
  if (fd < 0) return OpenError("cannot create", path, errno);
  PageSink sink(fd, std::move(target), std::move(temporary));
  if (fchmod(fd, exists ? status.st_mode & 07777 : NewFileMode()) != 0)
    return OpenError("cannot create", path, errno);
  return sink;
}

absl::Status PageSink::WriteError(int error) const {
  const std::string message = absl::StrCat("cannot write ", path_, ": ", std::strerror(error));
  return error == ENOSPC || error == EDQUOT ? absl::ResourceExhaustedError(message)
                                            : absl::UnavailableError(message);
}

absl::Status PageSink::Write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t put = write(fd_, bytes.data(), bytes.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return WriteError(errno);
    bytes = bytes.subspan(static_cast<size_t>(put));
  }
  return absl::OkStatus();
}

absl::Status PageSink::Finish() {
  // Delayed write errors (NFS, quotas) show at close.
  if (close(std::exchange(fd_, -1)) != 0) return WriteError(errno);
  if (temporary_path_.empty()) return absl::OkStatus();
  if (rename(temporary_path_.c_str(), path_.c_str()) != 0) return WriteError(errno);
  temporary_path_.clear();
  return absl::OkStatus();
}

}  // namespace kvstore::kvctl
