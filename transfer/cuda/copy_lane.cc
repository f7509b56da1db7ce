#include "transfer/cuda/copy_lane.h"

#include <algorithm>
#include <utility>

#include "kvstore/base/status_macros.h"

namespace kvstore::transfer {
namespace {

// A larger piece goes in parts, so that cancelling and urgent operations need not wait for it.
constexpr uint64_t kPartBytesMax = uint64_t{8} << 20;

}  // namespace

absl::Status CopyLane::Open() {
  RETURN_IF_ERROR(context_.Check(context_.driver().CreateStream(0, &stream_), "stream"));
  for (uint32_t i = 0; i < options_.batches_in_flight; ++i) {
    CUevent event = nullptr;
    RETURN_IF_ERROR(context_.Check(context_.driver().CreateEvent(&event), "event"));
    free_events_.push_back(event);
  }
  dsts_.reserve(options_.pieces_in_batch);
  srcs_.reserve(options_.pieces_in_batch);
  sizes_.reserve(options_.pieces_in_batch);
  return absl::OkStatus();
}

CopyLane::~CopyLane() {
  for (CUevent event : free_events_) (void)context_.driver().DestroyEvent(event);
  // With work on it the driver would free it later; ours is abandoned only with a dead device.
  if (stream_ != nullptr && batches_.empty()) (void)context_.driver().DestroyStream(stream_);
}

void CopyLane::Add(std::unique_ptr<Copy> copy) {
  waiting_[static_cast<size_t>(copy->operation.priority)].push_back(copy.get());
  copies_.push_back(std::move(copy));
}

bool CopyLane::End(CopyId id, const absl::Status& why) {
  for (const std::unique_ptr<Copy>& copy : copies_) {
    if (copy->id != id) continue;
    if (copy->ending.ok()) copy->ending = why;
    ReportEnded();
    return true;
  }
  return false;
}

void CopyLane::EndLate(absl::Time now) {
  for (const std::unique_ptr<Copy>& copy : copies_) {
    const bool is_waiting = copy->next_piece < copy->operation.pieces.size();
    if (is_waiting && copy->ending.ok() && copy->operation.deadline <= now) {
      copy->ending = absl::DeadlineExceededError("the copy did not start in time");
    }
  }
  ReportEnded();
}

void CopyLane::EndAll(const absl::Status& why) {
  for (const std::unique_ptr<Copy>& copy : copies_) {
    if (copy->ending.ok()) copy->ending = why;
  }
  ReportEnded();
}

void CopyLane::Abandon(const absl::Status& why) {
  for (std::deque<Copy*>& queue : waiting_) queue.clear();
  while (!copies_.empty()) {
    std::unique_ptr<Copy> copy = std::move(copies_.front());
    copies_.pop_front();
    report_(std::move(copy), why);
  }
}

// An error fails the context. If the next answer is an error, too, the context is gone and nothing
// runs in it any more; otherwise what it has can still be waited for.
template <typename Call>
CUresult CopyLane::AskTwice(Call call) {
  const CUresult result = call();
  return context_.Check(result, "copy").ok() || result == CUDA_ERROR_NOT_READY ? result : call();
}

bool CopyLane::TakeFinished() {
  bool has_finished = false;
  while (!batches_.empty()) {
    const CUresult result =
        AskTwice([&] { return context_.driver().Query(batches_.front().event); });
    if (result == CUDA_ERROR_NOT_READY) break;
    Batch batch = std::move(batches_.front());
    batches_.pop_front();
    free_events_.push_back(batch.event);
    Finish(batch, result == CUDA_SUCCESS && batch.has_moved);
    has_finished = true;
  }
  if (has_finished) ReportEnded();
  return has_finished;
}

void CopyLane::Finish(const Batch& batch, bool has_moved) {
  for (const Part& part : batch.parts) {
    --part.copy->parts_in_flight;
    if (!has_moved) {
      part.copy->ending = context_.failure();
    } else if (part.is_last_of_piece) {
      const uint32_t piece = part.copy->pieces_moved++;
      if (part.copy->operation.on_piece) part.copy->operation.on_piece(piece);
    }
  }
}

// Those of which the device has nothing: all moved, or ended on the way.
void CopyLane::ReportEnded() {
  std::vector<std::unique_ptr<Copy>> ended;
  for (auto it = copies_.begin(); it != copies_.end();) {
    Copy& copy = **it;
    const bool has_moved = copy.pieces_moved == copy.operation.pieces.size();
    if (copy.parts_in_flight > 0 || (!has_moved && copy.ending.ok())) {
      ++it;
      continue;
    }
    if (copy.next_piece < copy.operation.pieces.size()) {
      std::deque<Copy*>& queue = waiting_[static_cast<size_t>(copy.operation.priority)];
      queue.erase(std::find(queue.begin(), queue.end(), &copy));
    }
    ended.push_back(std::move(*it));
    it = copies_.erase(it);
  }
  for (std::unique_ptr<Copy>& copy : ended) {
    const bool has_moved = copy->pieces_moved == copy->operation.pieces.size();
    absl::Status status = has_moved ? absl::OkStatus() : copy->ending;
    report_(std::move(copy), std::move(status));
  }
}

CopyLane::Copy* CopyLane::NextToFeed() {
  for (std::deque<Copy*>& queue : waiting_) {
    for (Copy* copy : queue) {
      if (copy->ending.ok()) return copy;
    }
  }
  return nullptr;
}

void CopyLane::Feed() {
  while (!free_events_.empty() && !context_.has_failed()) {
    Batch batch;
    Fill(&batch);
    if (batch.parts.empty()) return;
    Send(std::move(batch));
  }
}

void CopyLane::Fill(Batch* batch) {
  dsts_.clear();
  srcs_.clear();
  sizes_.clear();
  uint64_t left = options_.bytes_in_batch;
  while (left > 0 && batch->parts.size() < options_.pieces_in_batch) {
    Copy* const copy = NextToFeed();
    if (copy == nullptr) return;
    AddPart(copy, left, batch);
    left -= sizes_.back();
  }
}

void CopyLane::AddPart(Copy* copy, uint64_t bytes_max, Batch* batch) {
  const std::vector<CopyPiece>& pieces = copy->operation.pieces;
  const CopyPiece& piece = pieces[copy->next_piece];
  const uint64_t bytes = std::min({piece.bytes - copy->next_byte, bytes_max, kPartBytesMax});
  dsts_.push_back(piece.dst + copy->next_byte);
  srcs_.push_back(piece.src + copy->next_byte);
  sizes_.push_back(bytes);
  copy->next_byte += bytes;
  const bool is_last = copy->next_byte == piece.bytes;
  batch->parts.push_back({copy, is_last});
  ++copy->parts_in_flight;
  if (!is_last) return;
  copy->next_byte = 0;
  if (++copy->next_piece < pieces.size()) return;
  std::deque<Copy*>& queue = waiting_[static_cast<size_t>(copy->operation.priority)];
  queue.erase(std::find(queue.begin(), queue.end(), copy));
}

void CopyLane::Send(Batch batch) {
  CudaDriver& driver = context_.driver();
  batch.has_moved = context_
                        .Check(driver.CopyBatch(dsts_.data(), srcs_.data(), sizes_.data(),
                                                sizes_.size(), stream_),
                               "copy")
                        .ok();
  // What a failing call had begun already is waited for, too.
  if (AskTwice([&] { return driver.Record(free_events_.back(), stream_); }) != CUDA_SUCCESS) {
    Finish(batch, false);
    ReportEnded();
    return;
  }
  batch.event = free_events_.back();
  free_events_.pop_back();
  batches_.push_back(std::move(batch));
}

}  // namespace kvstore::transfer
