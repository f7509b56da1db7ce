// What runs on the progress thread of a FileMover.
#include <pthread.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "transfer/io_uring/file_mover_impl.h"
#include "transfer/io_uring/file_status.h"
#include "transfer/io_uring/thread_backend.h"
#include "transfer/io_uring/uring_backend.h"

namespace kvstore::transfer {
namespace {

using State = ActiveOperation::State;

constexpr size_t kPieceBytesMax = size_t{1} << 30;  // as in file_mover.cc
constexpr uint32_t kRetriesMax = 1000;
constexpr absl::Duration kAgainPause = absl::Milliseconds(1);
// Bytes checked between two looks at the completion queue: about 0.1 ms of hashing, so that a deep
// queue never runs dry meanwhile.
constexpr uint64_t kCheckBytesPerTurn = uint64_t{1} << 20;
constexpr uint64_t kDirectAlignment = 512;
constexpr absl::Duration kScriptedPoll = absl::Microseconds(500);

void Advance(ActiveOperation& active, uint64_t bytes) {
  active.moved_bytes += bytes;
  active.position += bytes;
  while (bytes > 0) {
    iovec& first = active.parts[0];
    const uint64_t step = std::min<uint64_t>(bytes, first.iov_len);
    first.iov_base = static_cast<std::byte*>(first.iov_base) + step;
    first.iov_len -= step;
    bytes -= step;
    if (first.iov_len == 0 && active.num_parts == 2) {
      active.parts[0] = active.parts[1];
      active.num_parts = 1;
    }
  }
}

uint64_t PartBytes(const ActiveOperation& active) {
  return active.parts[0].iov_len + (active.num_parts == 2 ? active.parts[1].iov_len : 0);
}

// Requires: the tail and all pieces before `at` have moved.
void SetPiece(ActiveOperation& active, uint64_t at) {
  const FileOperation& operation = active.operation;
  const uint64_t bytes = std::min(operation.piece_bytes, operation.buffer.bytes - at);
  active.position = at;
  active.parts[0] = {operation.buffer.data + at, bytes};
  active.num_parts = 1;
}

void SetParts(ActiveOperation& active) {
  const FileOperation& operation = active.operation;
  if (operation.piece_bytes > 0) {
    active.position = operation.buffer.bytes;
    active.parts[0] = {operation.tail.data, operation.tail.bytes};
    active.num_parts = 1;
    return;
  }
  active.parts[0] = {operation.buffer.data, operation.buffer.bytes};
  active.parts[1] = {operation.tail.data, operation.tail.bytes};
  active.num_parts = operation.tail.bytes > 0 ? 2 : 1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<IoBackend>> FileMover::Impl::MakeBackend() {
  if (options_.make_backend) return options_.make_backend();
  if (options_.backend != BackendKind::kThreads) {
    auto ring = UringBackend::Create({.depth = options_.queue_depth,
                                      .registered_files_max = options_.registered_files_max,
                                      .registered_buffers_max = options_.registered_buffers_max});
    if (ring.ok() || options_.backend == BackendKind::kIoUring) return ring;
    absl::MutexLock lock(&mutex_);
    backend_note_ =
        absl::StrCat("no io_uring here (", std::string(ring.status().message()),
                     "): files are moved by pread/pwrite on ", options_.num_threads, " threads");
  }
  backend_kind_ = BackendKind::kThreads;
  return std::make_unique<ThreadBackend>(options_.num_threads);
}

void FileMover::Impl::Run(absl::Status* start_status, absl::Notification* started) {
  pthread_setname_np(pthread_self(), options_.thread_name.substr(0, 15).c_str());
  auto backend = MakeBackend();
  if (backend.ok()) backend_ = *std::move(backend);
  *start_status = backend.status();
  const bool is_running = backend.ok();
  started->Notify();  // neither pointer is valid from here on
  if (!is_running) return;

  while (Turn()) {
  }
}

bool FileMover::Impl::Turn() {
  if (!TakeIncoming()) return false;
  ExpireDeadlines();
  StartWaiting();
  results_.clear();
  backend_->Wait(options_.turns_on != nullptr ? absl::ZeroDuration() : SleepTime(), results_);
  {
    absl::MutexLock lock(&mutex_);
    is_asleep_ = false;
  }
  for (const IoResult& result : results_) HandleResult(result);
  // The device gets its next work before we hash what has arrived.
  if (!arrived_.empty()) {
    StartWaiting();
    backend_->Flush();
    FinishArrived();
  }
  return true;
}

void FileMover::Impl::PostTurn(absl::Time when) {
  if (when >= next_turn_) return;
  next_turn_ = when;
  options_.turns_on->PostAt(when, [this, when, alive = is_alive_] {
    if (*alive) RunPostedTurn(when);
  });
}

// The scripted kernel has results at times of its own: it is asked often while it has work.
void FileMover::Impl::RunPostedTurn(absl::Time when) {
  if (when != next_turn_) return;  // one that comes earlier was posted since
  next_turn_ = absl::InfiniteFuture();
  if (!Turn() || (table_.size() == 0 && !has_more_incoming_)) return;
  PostTurn(clock_.Now() + std::min(SleepTime(), kScriptedPoll));
}

bool FileMover::Impl::TakeIncoming() {
  std::deque<Incoming> incoming;
  std::deque<AddFileRequest> new_files;
  std::deque<MutableRegion> to_register;
  std::vector<int> to_unregister;
  {
    absl::MutexLock lock(&mutex_);
    incoming.swap(incoming_);
    new_files.swap(new_files_);
    to_unregister.swap(to_unregister_);
    if (!to_register_.empty()) {
      to_register.push_back(to_register_.front());
      to_register_.pop_front();
      registering_ = to_register.front().data;
    }
    if (is_stopping_ && incoming.empty() && new_files.empty() && table_.size() == 0) return false;
    has_more_incoming_ = !to_register_.empty();
    saw_stop_ = is_stopping_;
    is_asleep_ = !has_more_incoming_;
  }
  for (int index : to_unregister) backend_->UnregisterBuffer(index);
  for (const AddFileRequest& file : new_files) {
    files_.push_back({file.fd, backend_->RegisterFile(file.fd)});
    file.done->Notify();
  }
  for (Incoming& item : incoming) {
    const absl::Time deadline = item.operation.deadline;
    const uint32_t index = table_.Add(std::move(item.operation));
    ActiveOperation& active = table_.at(index);
    active.buffer_index = item.buffer_index;
    SetParts(active);
    Queue(index);
    if (deadline != absl::InfiniteFuture()) deadlines_.emplace(deadline, index);
  }
  if (!to_register.empty()) RegisterPieces(to_register.front());
  return true;
}

void FileMover::Impl::Queue(uint32_t index) {
  const bool is_in_pieces = table_.at(index).operation.piece_bytes > 0;
  (is_in_pieces ? later_ : waiting_).push_back(table_.Tag(index));
  if (is_in_pieces) LetPiecesIn();
}

void FileMover::Impl::LetPiecesIn() {
  while (!later_.empty()) {
    const uint64_t tag = later_.front();
    const auto index = static_cast<uint32_t>(tag);
    ActiveOperation& active = table_.at(index);
    const bool has_ended = table_.Tag(index) != tag || active.state != State::kWaiting;
    const uint64_t bytes = active.operation.bytes();
    if (!has_ended && pieces_bytes_ > 0 && pieces_bytes_ + bytes > options_.pieces_bytes_max)
      return;
    later_.pop_front();
    if (has_ended) continue;
    active.is_in_pieces = true;
    pieces_bytes_ += bytes;
    waiting_.push_back(tag);
  }
}

void FileMover::Impl::RegisterPieces(MutableRegion region) {
  // Pinned without the lock; published together, so that UnregisterMemory() finds all pieces or
  // none.
  std::vector<std::pair<MutableRegion, int>> pieces;
  uint64_t refused_bytes = 0;
  std::string note;
  for (size_t at = 0; at < region.bytes; at += kPieceBytesMax) {
    const MutableRegion piece{region.data + at, std::min(kPieceBytesMax, region.bytes - at)};
    absl::StatusOr<int> index = backend_->RegisterBuffer(piece);
    if (index.ok()) {
      pieces.emplace_back(piece, *index);
    } else {
      refused_bytes += piece.bytes;
      if (!absl::IsUnimplemented(index.status())) note = std::string(index.status().message());
    }
  }
  absl::MutexLock lock(&mutex_);
  for (const auto& [piece, index] : pieces) {
    registered_.Add(piece, index);
    stats_.registered_bytes += piece.bytes;
  }
  stats_.refused_bytes += refused_bytes;
  if (!note.empty()) memory_note_ = absl::StrCat(note, ": that memory is moved unregistered");
  registering_ = nullptr;
}

void FileMover::Impl::StartWaiting() {
  if (waiting_.empty() || clock_.Now() < pause_until_) return;
  while (!waiting_.empty() && in_kernel_ < options_.queue_depth) {
    const uint64_t tag = waiting_.front();
    const auto index = static_cast<uint32_t>(tag);
    ActiveOperation& active = table_.at(index);
    if (table_.Tag(index) != tag || active.state != State::kWaiting) {
      waiting_.pop_front();  // it ended while it waited
      continue;
    }
    if (active.operation.prepare && !active.is_prepared) {
      absl::Status status = Prepare(active);
      // What it lacks is held by operations that were started before.
      if (absl::IsResourceExhausted(status)) return;
      if (!status.ok()) {
        waiting_.pop_front();
        Finish(index, {std::move(status), 0});
        continue;
      }
    }
    waiting_.pop_front();
    if (!StartOne(index)) {
      waiting_.push_front(table_.Tag(index));
      return;
    }
  }
}

absl::Status FileMover::Impl::Prepare(ActiveOperation& active) {
  backend_->Flush();  // what is queued moves while we hash or encrypt
  const std::byte* before = active.operation.buffer.data;
  absl::Status status = active.operation.prepare(active.operation);
  if (!status.ok()) return status;
  active.is_prepared = true;
  if (active.operation.buffer.data != before) active.buffer_index = -1;  // not what was registered
  SetParts(active);
  return status;
}

bool FileMover::Impl::StartOne(uint32_t index) {
  ActiveOperation& active = table_.at(index);
  const FileOperation& operation = active.operation;
  const File& file = files_[operation.file.value()];
  table_.Renew(index);
  const bool is_started = backend_->Start({.tag = table_.Tag(index),
                                           .direction = operation.direction,
                                           .fd = file.fd,
                                           .file_index = file.index,
                                           .buffer_index = active.buffer_index,
                                           .parts = active.parts,
                                           .num_parts = active.num_parts,
                                           .offset = operation.offset + active.position});
  if (!is_started) return false;
  active.state = State::kInKernel;
  ++in_kernel_;
  return true;
}

void FileMover::Impl::ExpireDeadlines() {
  if (deadlines_.empty()) return;
  const absl::Time now = clock_.Now();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const uint32_t index = deadlines_.begin()->second;
    deadlines_.erase(deadlines_.begin());
    ActiveOperation& active = table_.at(index);
    if (active.state == State::kWaiting) {
      Finish(index, {absl::DeadlineExceededError(
                         absl::StrCat(Describe(active), ": deadline passed in the queue")),
                     0});
    } else if (active.state == State::kInKernel) {
      active.cancel_asked = true;
      backend_->Cancel(table_.Tag(index));
    }
  }
}

absl::Duration FileMover::Impl::SleepTime() {
  if (!arrived_.empty() || has_more_incoming_) return absl::ZeroDuration();
  // The last operation may have ended since TakeIncoming() looked: nothing would wake us.
  if (saw_stop_ && table_.size() == 0) return absl::ZeroDuration();
  absl::Time until = deadlines_.empty() ? absl::InfiniteFuture() : deadlines_.begin()->first;
  const absl::Time now = clock_.Now();
  if (!waiting_.empty() && in_kernel_ < options_.queue_depth) {
    until = std::min(until, std::max(pause_until_, now + kAgainPause));
  }
  return std::max(until - now, absl::ZeroDuration());
}

void FileMover::Impl::HandleResult(const IoResult& result) {
  ActiveOperation* active = table_.Find(result.tag);
  if (active == nullptr) {
    absl::MutexLock lock(&mutex_);
    ++stats_.stale_completions;
    return;
  }
  const auto index = static_cast<uint32_t>(result.tag);
  --in_kernel_;
  if (active->cancel_asked) {
    // Also when it succeeded at last: its reader has been told that time is up.
    Finish(index,
           {absl::DeadlineExceededError(absl::StrCat(Describe(*active), ": too slow")), ETIME});
    return;
  }
  if (result.result == -EAGAIN || result.result == -EINTR) {
    if (result.result == -EAGAIN) pause_until_ = clock_.Now() + kAgainPause;
    if (active->retries < kRetriesMax) return Retry(index);
  }
  if (result.result < 0) {
    Finish(index, {FileStatus(-result.result, Describe(*active)), -result.result});
    return;
  }
  const uint64_t left = PartBytes(*active);
  const auto moved = static_cast<uint64_t>(result.result);
  if (moved > left) {
    Finish(index, {absl::InternalError(absl::StrCat(Describe(*active), ": the kernel reports ",
                                                    moved, " of ", left, " bytes")),
                   0});
    return;
  }
  if (moved == left) {
    active->moved_bytes += moved;
    active->state = State::kArrived;
    arrived_.push_back(index);
    return;
  }
  if (moved == 0 || moved % kDirectAlignment != 0 || active->retries >= kRetriesMax) {
    Finish(index,
           {absl::UnavailableError(absl::StrCat(Describe(*active), ": short, ",
                                                active->moved_bytes + moved, " bytes moved")),
            EIO});
    return;
  }
  Advance(*active, moved);
  {
    absl::MutexLock lock(&mutex_);
    ++stats_.continued_operations;
  }
  Retry(index);
}

void FileMover::Impl::Retry(uint32_t index) {
  ActiveOperation& active = table_.at(index);
  ++active.retries;
  active.state = State::kWaiting;
  waiting_.push_front(table_.Tag(index));
  absl::MutexLock lock(&mutex_);
  ++stats_.retried_operations;
}

void FileMover::Impl::FinishArrived() {
  uint64_t bytes = 0;
  while (!arrived_.empty() && bytes < kCheckBytesPerTurn) {
    const uint32_t index = arrived_.front();
    arrived_.pop_front();
    ActiveOperation& active = table_.at(index);
    FileOperation& operation = active.operation;
    if (operation.piece_bytes > 0) {
      bytes += operation.piece_bytes;
      FinishPiece(index, active);
      continue;
    }
    bytes += operation.bytes();
    absl::Status status = operation.check ? operation.check() : absl::OkStatus();
    Finish(index, {std::move(status), 0});
  }
}

void FileMover::Impl::FinishPiece(uint32_t index, ActiveOperation& active) {
  FileOperation& operation = active.operation;
  const uint64_t of_buffer = active.moved_bytes - operation.tail.bytes;
  absl::Status status = operation.check_piece(of_buffer);
  if (!status.ok() || of_buffer == operation.buffer.bytes)
    return Finish(index, {std::move(status), 0});
  // One that passed while this piece was here is not waited for any more.
  if (operation.deadline <= clock_.Now()) {
    return Finish(index, {absl::DeadlineExceededError(absl::StrCat(Describe(active), ": too slow, ",
                                                                   of_buffer, " bytes moved")),
                          ETIME});
  }
  SetPiece(active, of_buffer);
  active.retries = 0;
  active.state = State::kWaiting;
  waiting_.push_back(table_.Tag(index));
}

void FileMover::Impl::Finish(uint32_t index, FileResult result) {
  ActiveOperation& active = table_.at(index);
  if (active.operation.deadline != absl::InfiniteFuture()) {
    deadlines_.erase({active.operation.deadline, index});
  }
  {
    absl::MutexLock lock(&mutex_);
    --stats_.in_flight;
    ++stats_.operations;
    if (active.state == State::kArrived) {
      const bool is_read = active.operation.direction == FileDirection::kRead;
      (is_read ? stats_.read_bytes : stats_.write_bytes) += active.moved_bytes;
      if (active.buffer_index >= 0) ++stats_.registered_operations;
    } else if (absl::IsDeadlineExceeded(result.status)) {
      ++stats_.deadline_misses;
    } else if (active.state == State::kInKernel) {
      ++stats_.errors;
    }
  }
  FileOperation::Done done = std::move(active.operation.done);
  const uint64_t in_pieces = active.is_in_pieces ? active.operation.bytes() : 0;
  table_.Remove(index);
  if (in_pieces > 0) {
    pieces_bytes_ -= in_pieces;
    LetPiecesIn();
  }
  if (done) done(std::move(result));
}

std::string FileMover::Impl::Describe(const ActiveOperation& active) const {
  const FileOperation& operation = active.operation;
  return absl::StrCat(operation.direction == FileDirection::kRead ? "read" : "write", " of ",
                      operation.bytes(), " bytes at offset ", operation.offset);
}

}  // namespace kvstore::transfer
