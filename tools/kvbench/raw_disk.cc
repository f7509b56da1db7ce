#include "tools/kvbench/raw_disk.h"

#include <fcntl.h>
#include <liburing.h>
#include <sys/uio.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "tools/kvbench/random_bytes.h"
#include "tools/kvbench/stopwatch.h"

namespace kvstore::bench {

void RawDisk::CloseRing::operator()(io_uring* ring) const {
  io_uring_queue_exit(ring);
  delete ring;
}

RawDisk::RawDisk(Options options, UniqueFd file, SetMemory buffers)
    : options_(std::move(options)), file_(std::move(file)), buffers_(std::move(buffers)) {}
RawDisk::~RawDisk() = default;

absl::StatusOr<RawDisk> RawDisk::Open(const Options& options) {
  UniqueFd file(open(options.path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC));
  if (!file.is_open()) return absl::ErrnoToStatus(errno, absl::StrCat("open ", options.path));
  ASSIGN_OR_RETURN(SetMemory buffers, SetMemory::Make(options.depth * options.operation_bytes));
  FillRandom(buffers.bytes(), 77);
  RawDisk disk(options, std::move(file), std::move(buffers));
  auto ring = std::make_unique<io_uring>();
  if (const int error = io_uring_queue_init(options.depth, ring.get(), 0); error < 0) {
    return absl::ErrnoToStatus(-error, "io_uring");
  }
  disk.ring_.reset(ring.release());
  std::vector<iovec> regions;
  for (uint32_t i = 0; i < options.depth; ++i) {
    regions.push_back({.iov_base = disk.buffers_.piece(i, options.operation_bytes).data(),
                       .iov_len = options.operation_bytes});
  }
  const int fd = disk.file_.get();
  if (io_uring_register_files(disk.ring_.get(), &fd, 1) != 0 ||
      io_uring_register_buffers(disk.ring_.get(), regions.data(), options.depth) != 0) {
    return absl::UnavailableError("io_uring does not register the file or its buffers");
  }
  return disk;
}

void RawDisk::Prepare(DiskOperation operation, uint32_t slot, uint64_t offset) {
  io_uring_sqe* sqe = io_uring_get_sqe(ring_.get());
  void* data = buffers_.piece(slot, options_.operation_bytes).data();
  const auto bytes = static_cast<unsigned>(options_.operation_bytes);
  if (operation == DiskOperation::kRead) {
    io_uring_prep_read_fixed(sqe, 0, data, bytes, offset, static_cast<int>(slot));
  } else {
    io_uring_prep_write_fixed(sqe, 0, data, bytes, offset, static_cast<int>(slot));
  }
  sqe->flags |= IOSQE_FIXED_FILE;
  sqe->user_data = slot;
}

absl::StatusOr<double> RawDisk::RunSeconds(DiskOperation operation,
                                           std::span<const uint64_t> offsets) {
  const Stopwatch watch;
  size_t next = 0, done = 0;
  for (uint32_t slot = 0; slot < options_.depth && next < offsets.size(); ++slot) {
    Prepare(operation, slot, offsets[next++]);
  }
  absl::Status status;
  for (size_t submitted = next; done < submitted; submitted = next) {
    const int error = io_uring_submit_and_wait(ring_.get(), 1);
    if (error < 0 && error != -EINTR) return absl::ErrnoToStatus(-error, "io_uring_submit");
    io_uring_cqe* cqe = nullptr;
    while (io_uring_peek_cqe(ring_.get(), &cqe) == 0) {
      const auto slot = static_cast<uint32_t>(cqe->user_data);
      if (cqe->res < 0) {
        status = absl::ErrnoToStatus(-cqe->res, "raw disk");
      } else if (static_cast<uint64_t>(cqe->res) != options_.operation_bytes) {
        status = absl::UnavailableError("raw disk: a short transfer");
      }
      io_uring_cqe_seen(ring_.get(), cqe);
      ++done;
      if (status.ok() && next < offsets.size()) Prepare(operation, slot, offsets[next++]);
    }
  }
  if (!status.ok()) return status;
  return watch.Seconds();
}

}  // namespace kvstore::bench
