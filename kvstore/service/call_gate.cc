#include "kvstore/service/call_gate.h"

#include "absl/strings/str_cat.h"

namespace kvstore::service {

CallGate::Ticket& CallGate::Ticket::operator=(Ticket&& other) noexcept {
  if (this == &other) return *this;
  Release();
  gate_ = std::exchange(other.gate_, nullptr);
  key_ = other.key_;
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

absl::Status CallGate::Ticket::Grow(size_t bytes) {
  absl::MutexLock lock(&gate_->mutex_);
  if (bytes > gate_->limits_.bytes - gate_->bytes_) {
    ++gate_->refused_calls_;
    return absl::ResourceExhaustedError(absl::StrCat(
        "calls in progress hold limits.call_bytes = ", gate_->limits_.bytes, " bytes"));
  }
  gate_->bytes_ += bytes;
  bytes_ += bytes;
  return absl::OkStatus();
}

void CallGate::Ticket::Release() {
  if (gate_ == nullptr) return;
  absl::MutexLock lock(&gate_->mutex_);
  --gate_->calls_;
  gate_->bytes_ -= bytes_;
  auto it = gate_->calls_by_caller_.find(key_);
  if (--it->second == 0) gate_->calls_by_caller_.erase(it);
  gate_ = nullptr;
  bytes_ = 0;
}

absl::StatusOr<CallGate::Ticket> CallGate::Admit(CallerKey caller, size_t bytes) {
  absl::MutexLock lock(&mutex_);
  auto it = calls_by_caller_.find(caller);
  const size_t of_caller = it == calls_by_caller_.end() ? 0 : it->second;
  const char* full = calls_ >= limits_.calls                 ? "limits.calls"
                     : of_caller >= limits_.calls_per_caller ? "limits.calls_per_uid"
                     : bytes > limits_.bytes - bytes_        ? "limits.call_bytes"
                                                             : nullptr;
  if (full != nullptr) {
    ++refused_calls_;
    return absl::ResourceExhaustedError(
        absl::StrCat("too much in progress: ", full, " is reached; wait and try again"));
  }
  ++calls_;
  bytes_ += bytes;
  ++calls_by_caller_[caller];
  return Ticket(this, caller, bytes);
}

CallGate::Counters CallGate::counters() const {
  absl::MutexLock lock(&mutex_);
  return {.calls = calls_, .bytes = bytes_, .refused_calls = refused_calls_};
}

}  // namespace kvstore::service
