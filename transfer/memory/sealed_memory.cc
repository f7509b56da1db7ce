#include "transfer/memory/sealed_memory.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"

// Newer than Debian 12's headers; the values are the kernel's ABI.
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace kvstore::transfer {
namespace {

constexpr uint64_t kHugePageBytes = uint64_t{2} << 20;
constexpr int kResizeSeals = F_SEAL_SHRINK | F_SEAL_GROW;

// Out of descriptors or memory now: a retry may help. Anything else is how the machine is set up.
absl::Status SystemError(int error, const char* what) {
  if (error == EMFILE || error == ENFILE || error == ENOMEM) {
    return absl::UnavailableError(absl::ErrnoToStatus(error, what).message());
  }
  return absl::FailedPreconditionError(absl::ErrnoToStatus(error, what).message());
}

int CreateMemfd(const std::string& name, unsigned flags) {
  const int fd =
      memfd_create(name.c_str(), flags | MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
  if (fd >= 0 || errno != EINVAL) return fd;
  return memfd_create(name.c_str(), flags | MFD_CLOEXEC | MFD_ALLOW_SEALING);  // before Linux 6.3
}

absl::StatusOr<UniqueFd> ReopenReadOnly(int fd) {
  const std::string path = absl::StrCat("/proc/self/fd/", fd);
  const int reopened = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (reopened < 0) return SystemError(errno, "cannot reopen a memfd through /proc/self/fd");
  return UniqueFd(reopened);
}

}  // namespace

absl::StatusOr<SealedMemory> SealedMemory::Create(const Options& options) {
  if (options.bytes == 0 || options.bytes % 4096 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("memory of ", options.bytes, " bytes is not a multiple of 4096 above 0"));
  }
  SealedMemory memory;
  memory.bytes_ = options.bytes;
  memory.seal_ = options.seal;
  RETURN_IF_ERROR(memory.Open(options));
  // Fails early where /proc is missing, rather than with the first session.
  ASSIGN_OR_RETURN(UniqueFd read_only, ReopenReadOnly(memory.fd_.get()));
  if (options.seal == Seal::kFutureWrite) memory.fd_ = std::move(read_only);
  return memory;
}

absl::StatusOr<SealedMemory> SealedMemory::Adopt(UniqueFd fd, uint64_t bytes) {
  struct stat status {};
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || fstat(fd.get(), &status) != 0 ||
      (seals & (kResizeSeals | F_SEAL_SEAL)) != (kResizeSeals | F_SEAL_SEAL)) {
    return absl::DataLossError("a kept descriptor is not of sealed memory");
  }
  if (static_cast<uint64_t>(status.st_size) != bytes || status.st_uid != geteuid() ||
      (status.st_mode & 0777) != 0400) {
    return absl::DataLossError(absl::StrCat("kept memory has ", status.st_size, " bytes, uid ",
                                            status.st_uid, " and mode ", status.st_mode & 0777,
                                            "; expected ", bytes, ", ours and 0400"));
  }
  SealedMemory memory;
  memory.bytes_ = bytes;
  memory.fd_ = std::move(fd);
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory.fd_.get(), 0);
  if (mapped == MAP_FAILED) return SystemError(errno, "mmap of kept memory");
  memory.data_ = static_cast<std::byte*>(mapped);
  (void)madvise(memory.data_, bytes, MADV_DONTDUMP);
  RETURN_IF_ERROR(ReopenReadOnly(memory.fd_.get()).status());
  return memory;
}

uint64_t SealedMemory::inode() const {
  struct stat status {};
  return fstat(fd_.get(), &status) == 0 ? status.st_ino : 0;
}

SealedMemory::SealedMemory(SealedMemory&& other) noexcept
    : fd_(std::move(other.fd_)),
      seal_(other.seal_),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(other.bytes_),
      has_reserved_huge_pages_(other.has_reserved_huge_pages_) {}

SealedMemory::~SealedMemory() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

absl::Status SealedMemory::Open(const Options& options) {
  const bool can_be_huge =
      options.huge_pages == HugePages::kTry && options.bytes % kHugePageBytes == 0;
  if (can_be_huge) {
    fd_.Reset(CreateMemfd(options.name, MFD_HUGETLB | MFD_HUGE_2MB));
    // mmap reserves the pages or fails: there is no SIGBUS later.
    if (fd_.is_open() && MapAndSeal(options).ok()) {
      has_reserved_huge_pages_ = true;
      return absl::OkStatus();
    }
  }
  fd_.Reset(CreateMemfd(options.name, 0));
  if (!fd_.is_open()) return SystemError(errno, "memfd_create");
  RETURN_IF_ERROR(MapAndSeal(options));
  // Takes effect where /sys/kernel/mm/transparent_hugepage/shmem_enabled says advise; a hint
  // elsewhere.
  if (can_be_huge) (void)madvise(data_, bytes_, MADV_HUGEPAGE);
  return absl::OkStatus();
}

absl::Status SealedMemory::MapAndSeal(const Options& options) {
  if (ftruncate(fd_.get(), static_cast<off_t>(bytes_)) != 0) {
    return SystemError(errno, "ftruncate of a memfd");
  }
  // Before any other process can see it. Nobody of another uid opens it anew, for reading neither.
  if (fchmod(fd_.get(), 0400) != 0) return SystemError(errno, "fchmod of a memfd");
  void* mapped = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
  if (mapped == MAP_FAILED) return SystemError(errno, "mmap of a memfd");
  data_ = static_cast<std::byte*>(mapped);
  // The mapping above keeps its write access.
  const int future_write = options.seal == Seal::kFutureWrite ? F_SEAL_FUTURE_WRITE : 0;
  if (fcntl(fd_.get(), F_ADD_SEALS, kResizeSeals | future_write | F_SEAL_SEAL) != 0) {
    const int error = errno;
    munmap(std::exchange(data_, nullptr), bytes_);
    return SystemError(error, "sealing of a memfd");
  }
  (void)madvise(data_, bytes_, MADV_DONTDUMP);
  return absl::OkStatus();
}

absl::Status SealedMemory::Populate(uint64_t offset, uint64_t bytes) const {
  int result;
  do {
    result = madvise(data_ + offset, bytes, MADV_POPULATE_WRITE);
  } while (result != 0 && errno == EINTR);
  if (result == 0) return absl::OkStatus();
  // Before Linux 5.14: allocates the pages; the mapping is filled as they are touched.
  if (errno == EINVAL && seal_ == Seal::kResize &&
      fallocate(fd_.get(), 0, static_cast<off_t>(offset), static_cast<off_t>(bytes)) == 0) {
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(
      absl::ErrnoToStatus(errno, "memory is not faulted in ahead, first writes are slow")
          .message());
}

absl::Status SealedMemory::Lock(uint64_t offset, uint64_t bytes) const {
  if (mlock(data_ + offset, bytes) == 0) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::ErrnoToStatus(errno, "memory is not locked and may be swapped out, see RLIMIT_MEMLOCK")
          .message());
}

absl::Status SealedMemory::Discard() const {
  if (fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                static_cast<off_t>(bytes_)) == 0) {
    return absl::OkStatus();
  }
  return SystemError(errno, "punching a hole into a memfd");
}

absl::StatusOr<UniqueFd> SealedMemory::Export(MemoryAccess access) const {
  if (access == MemoryAccess::kReadOnly) return ReopenReadOnly(fd_.get());
  if (seal_ == Seal::kFutureWrite) {
    return absl::PermissionDeniedError("this memory is read-only for all but its owner");
  }
  const int duplicate = fcntl(fd_.get(), F_DUPFD_CLOEXEC, 0);
  if (duplicate < 0) return SystemError(errno, "duplicating a descriptor");
  return UniqueFd(duplicate);
}

}  // namespace kvstore::transfer
