#include "transfer/io_uring/file_mover.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "transfer/io_uring/file_mover_impl.h"

namespace kvstore::transfer {
namespace {

constexpr size_t kPieceBytesMax = size_t{1} << 30;  // the kernel's limit for one registered buffer
constexpr uint64_t kDirectAlignment = 4096;

}  // namespace

absl::Status FileMover::Options::Validate() const {
  if (queue_depth < 1 || queue_depth > 4096) {
    return absl::InvalidArgumentError(
        absl::StrCat("queue_depth is ", queue_depth, "; valid: 1 to 4096"));
  }
  if (inflight_max < queue_depth || inflight_max > 65536) {
    return absl::InvalidArgumentError(absl::StrCat(
        "inflight_max is ", inflight_max, "; valid: queue_depth (", queue_depth, ") to 65536"));
  }
  if (num_threads < 1 || num_threads > 256) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_threads is ", num_threads, "; valid: 1 to 256"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<FileMover>> FileMover::Create(Options options, const Clock& clock) {
  RETURN_IF_ERROR(options.Validate());
  auto impl = std::make_unique<Impl>(std::move(options), clock);
  RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<FileMover>(new FileMover(std::move(impl)));
}

FileMover::FileMover(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
FileMover::~FileMover() = default;
FileId FileMover::AddFile(int fd) { return impl_->AddFile(fd); }
void FileMover::RegisterMemory(MutableRegion region) { impl_->RegisterMemory(region); }
void FileMover::UnregisterMemory(MutableRegion region) { impl_->UnregisterMemory(region); }
absl::Status FileMover::Submit(FileOperation operation) {
  return impl_->Submit(std::move(operation));
}
void FileMover::Stop() { impl_->Stop(); }
FileMoverStats FileMover::stats() const { return impl_->stats(); }
FileMover::BackendKind FileMover::backend() const { return impl_->backend(); }
std::string FileMover::degraded() const { return impl_->degraded(); }

FileMover::Impl::Impl(Options options, const Clock& clock)
    : options_(std::move(options)), clock_(clock), table_(options_.inflight_max) {}

absl::Status FileMover::Impl::Start() {
  if (options_.turns_on != nullptr) {
    ASSIGN_OR_RETURN(backend_, MakeBackend());
    return absl::OkStatus();
  }
  absl::Status status;
  absl::Notification started;
  thread_ = std::thread([&] { Run(&status, &started); });
  started.WaitForNotification();
  return status;
}

FileId FileMover::Impl::AddFile(int fd) {
  absl::Notification done;
  FileId id;
  {
    absl::MutexLock lock(&mutex_);
    id = FileId(num_files_++);
    new_files_.push_back({fd, &done});
  }
  if (options_.turns_on != nullptr) (void)Turn();
  Wake();
  done.WaitForNotification();
  return id;
}

void FileMover::Impl::RegisterMemory(MutableRegion region) {
  if (region.bytes == 0) return;
  {
    absl::MutexLock lock(&mutex_);
    to_register_.push_back(region);
  }
  Wake();
}

void FileMover::Impl::UnregisterMemory(MutableRegion region) {
  {
    absl::MutexLock lock(&mutex_);
    auto pending =
        std::find_if(to_register_.begin(), to_register_.end(),
                     [&](const MutableRegion& other) { return other.data == region.data; });
    if (pending != to_register_.end()) to_register_.erase(pending);
    // The progress thread may be pinning it just now, which takes some 40 ms a GiB.
    const auto is_settled = [this, &region]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return registering_ != region.data;
    };
    mutex_.Await(absl::Condition(&is_settled));
    for (size_t at = 0; at < region.bytes; at += kPieceBytesMax) {
      if (auto index = registered_.Remove(region.data + at)) {
        to_unregister_.push_back(*index);
        stats_.registered_bytes -= std::min(kPieceBytesMax, region.bytes - at);
      }
    }
  }
  Wake();
}

absl::Status FileMover::Impl::Submit(FileOperation operation) {
  if (operation.buffer.bytes == 0) {
    return absl::InvalidArgumentError("a file operation without a buffer");
  }
  if (operation.piece_bytes > 0 &&
      (operation.direction != FileDirection::kRead || operation.tail.bytes == 0 ||
       operation.piece_bytes % kDirectAlignment != 0 || !operation.check_piece)) {
    return absl::InvalidArgumentError("pieces are of reads with a tail, and of whole 4096 bytes");
  }
  bool must_wake = false;
  {
    absl::MutexLock lock(&mutex_);
    if (is_stopping_) return absl::FailedPreconditionError("the file mover is stopped");
    if (operation.file.value() >= num_files_) return absl::InvalidArgumentError("unknown file");
    if (stats_.in_flight >= options_.inflight_max) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the file mover's queue is full (", options_.inflight_max, " operations)"));
    }
    ++stats_.in_flight;
    Incoming incoming;
    if (operation.tail.bytes == 0) incoming.buffer_index = registered_.Find(operation.buffer);
    // Pieces are one part each, and lie in one region when the tail follows the buffer in memory.
    if (operation.piece_bytes > 0 &&
        operation.buffer.data + operation.buffer.bytes == operation.tail.data)
      incoming.buffer_index = registered_.Find({operation.buffer.data, operation.bytes()});
    incoming.operation = std::move(operation);
    incoming_.push_back(std::move(incoming));
    std::swap(must_wake, is_asleep_);
  }
  if (options_.turns_on != nullptr) {
    PostTurn(clock_.Now());
  } else if (must_wake) {
    backend_->Wake();
  }
  return absl::OkStatus();
}

void FileMover::Impl::Wake() {
  {
    absl::MutexLock lock(&mutex_);
    if (!is_asleep_) return;
    is_asleep_ = false;
  }
  backend_->Wake();
}

void FileMover::Impl::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    is_stopping_ = true;
  }
  if (options_.turns_on != nullptr) {
    do {
      pause_until_ = absl::InfinitePast();  // virtual time stands still meanwhile
    } while (Turn());
    return;
  }
  if (!thread_.joinable()) return;
  Wake();
  thread_.join();
}

FileMoverStats FileMover::Impl::stats() const {
  absl::MutexLock lock(&mutex_);
  return stats_;
}

std::string FileMover::Impl::degraded() const {
  absl::MutexLock lock(&mutex_);
  const char* between = backend_note_.empty() || memory_note_.empty() ? "" : "; ";
  return absl::StrCat(backend_note_, between, memory_note_);
}

}  // namespace kvstore::transfer
