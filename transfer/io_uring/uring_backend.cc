#include "transfer/io_uring/uring_backend.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::transfer {
namespace {

constexpr uint64_t kWakeTag = IoBackend::kTagMax;
constexpr uint64_t kCancelTag = IoBackend::kTagMax + 1;

absl::Status SetupError(const char* call, int error) {
  return absl::UnavailableError(absl::StrCat(call, ": ", std::strerror(error)));
}

int FindFree(const std::vector<bool>& used) {
  auto it = std::find(used.begin(), used.end(), false);
  return it == used.end() ? -1 : static_cast<int>(it - used.begin());
}

}  // namespace

absl::StatusOr<std::unique_ptr<UringBackend>> UringBackend::Create(const Options& options) {
  std::unique_ptr<UringBackend> backend(new UringBackend());
  RETURN_IF_ERROR(backend->Init(options));
  return backend;
}

absl::Status UringBackend::Init(const Options& options) {
  io_uring_params params{};
  // Room for each request and its cancellation, so that Start() and Cancel() never meet a full ring
  // between two flushes.
  const uint32_t entries = 2 * options.depth + 8;
  params.flags = IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER |
                 IORING_SETUP_DEFER_TASKRUN;
  params.cq_entries = 2 * entries;
  int rc = io_uring_queue_init_params(entries, &ring_, &params);
  if (rc == -EINVAL) {  // before Linux 6.1
    params = {};
    params.flags = IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE;
    params.cq_entries = 2 * entries;
    rc = io_uring_queue_init_params(entries, &ring_, &params);
  }
  if (rc < 0) return SetupError("io_uring_setup", -rc);
  has_ring_ = true;
  constexpr uint32_t kNeeded = IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE | IORING_FEAT_EXT_ARG;
  if ((params.features & kNeeded) != kNeeded) {
    return absl::UnavailableError("io_uring: this kernel is too old (Linux 5.11 or newer)");
  }
  wake_fd_ = eventfd(0, EFD_CLOEXEC);
  if (wake_fd_ < 0) return SetupError("eventfd", errno);
  // Without the tables requests work the same, with a little more cost each.
  if (io_uring_register_files_sparse(&ring_, options.registered_files_max) == 0) {
    files_.assign(options.registered_files_max, false);
  }
  if (io_uring_register_buffers_sparse(&ring_, options.registered_buffers_max) == 0) {
    buffers_.assign(options.registered_buffers_max, false);
  }
  return absl::OkStatus();
}

UringBackend::~UringBackend() {
  // The wake read may still be armed; closing the ring cancels it before its target, a member, goes
  // away.
  if (has_ring_) io_uring_queue_exit(&ring_);
  if (wake_fd_ >= 0) close(wake_fd_);
}

io_uring_sqe* UringBackend::NextSqe() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  if (sqe == nullptr) {
    io_uring_submit(&ring_);
    sqe = io_uring_get_sqe(&ring_);
  }
  return sqe;
}

bool UringBackend::Start(const IoRequest& request) {
  io_uring_sqe* sqe = NextSqe();
  if (sqe == nullptr) return false;
  const int fd = request.file_index >= 0 ? request.file_index : request.fd;
  const iovec& first = request.parts[0];
  const bool is_read = request.direction == FileDirection::kRead;
  if (request.num_parts > 1) {
    if (is_read) {
      io_uring_prep_readv(sqe, fd, request.parts, request.num_parts, request.offset);
    } else {
      io_uring_prep_writev(sqe, fd, request.parts, request.num_parts, request.offset);
    }
  } else {
    const auto bytes = static_cast<unsigned>(first.iov_len);
    if (request.buffer_index >= 0) {
      if (is_read) {
        io_uring_prep_read_fixed(sqe, fd, first.iov_base, bytes, request.offset,
                                 request.buffer_index);
      } else {
        io_uring_prep_write_fixed(sqe, fd, first.iov_base, bytes, request.offset,
                                  request.buffer_index);
      }
    } else if (is_read) {
      io_uring_prep_read(sqe, fd, first.iov_base, bytes, request.offset);
    } else {
      io_uring_prep_write(sqe, fd, first.iov_base, bytes, request.offset);
    }
  }
  if (request.file_index >= 0) sqe->flags |= IOSQE_FIXED_FILE;
  io_uring_sqe_set_data64(sqe, request.tag);
  return true;
}

void UringBackend::Cancel(uint64_t tag) {
  io_uring_sqe* sqe = NextSqe();
  if (sqe == nullptr) return;  // asked for again at the next deadline check
  io_uring_prep_cancel64(sqe, tag, 0);
  io_uring_sqe_set_data64(sqe, kCancelTag);
}

void UringBackend::Flush() { io_uring_submit(&ring_); }

void UringBackend::ArmWake() {
  io_uring_sqe* sqe = NextSqe();
  if (sqe == nullptr) return;
  io_uring_prep_read(sqe, wake_fd_, &wake_count_, sizeof wake_count_, 0);
  io_uring_sqe_set_data64(sqe, kWakeTag);
  wake_armed_ = true;
}

void UringBackend::Collect(std::vector<IoResult>& results) {
  unsigned head;
  unsigned seen = 0;
  io_uring_cqe* cqe;
  io_uring_for_each_cqe(&ring_, head, cqe) {
    ++seen;
    if (cqe->user_data == kWakeTag) {
      wake_armed_ = false;
    } else if (cqe->user_data != kCancelTag) {
      results.push_back({cqe->user_data, cqe->res});
    }
  }
  io_uring_cq_advance(&ring_, seen);
}

void UringBackend::Wait(absl::Duration timeout, std::vector<IoResult>& results) {
  if (!wake_armed_) ArmWake();
  if (timeout <= absl::ZeroDuration()) {
    io_uring_submit_and_get_events(&ring_);
  } else {
    // Bounded, so that a lost wake-up would cost a delay and not a hang.
    timeout = std::min(timeout, absl::Seconds(60));
    const timespec ts = absl::ToTimespec(timeout);
    __kernel_timespec kernel_ts{ts.tv_sec, ts.tv_nsec};
    io_uring_cqe* cqe = nullptr;
    io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &kernel_ts, nullptr);
  }
  Collect(results);
}

void UringBackend::Wake() {
  const uint64_t one = 1;
  while (write(wake_fd_, &one, sizeof one) < 0 && errno == EINTR) {
  }
}

int UringBackend::RegisterFile(int fd) {
  const int index = FindFree(files_);
  if (index < 0) return -1;
  if (io_uring_register_files_update(&ring_, static_cast<unsigned>(index), &fd, 1) != 1) return -1;
  files_[static_cast<size_t>(index)] = true;
  return index;
}

absl::StatusOr<int> UringBackend::RegisterBuffer(MutableRegion region) {
  const int index = FindFree(buffers_);
  if (index < 0) {
    return absl::ResourceExhaustedError("io_uring: the table of registered buffers is full");
  }
  iovec piece{region.data, region.bytes};
  const int rc = io_uring_register_buffers_update_tag(&ring_, static_cast<unsigned>(index), &piece,
                                                      nullptr, 1);
  if (rc != 1) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "io_uring: registering ", region.bytes, " bytes of memory: ",
        rc < 0 ? std::strerror(-rc) : "refused", rc == -ENOMEM ? " (RLIMIT_MEMLOCK)" : ""));
  }
  buffers_[static_cast<size_t>(index)] = true;
  return index;
}

void UringBackend::UnregisterBuffer(int index) {
  iovec none{nullptr, 0};
  io_uring_register_buffers_update_tag(&ring_, static_cast<unsigned>(index), &none, nullptr, 1);
  buffers_[static_cast<size_t>(index)] = false;
}

}  // namespace kvstore::transfer
