#include "kvstore/service/call_gate.h"

#include "absl/strings/str_cat.h"

namespace kvstore::service {

CallGate::Ticket& CallGate::Ticket::operator=(Ticket&& other) noexcept {
  if (this == &other) return *this;
  Release();
  gate_ = std::exchange(other.gate_, nullptr);
  account_ = other.account_;
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

absl::Status CallGate::Ticket::Grow(size_t bytes) {
  absl::MutexLock lock(&gate_->mutex_);
  if (std::string full = gate_->FullOfBytes(account_->second, bytes); !full.empty()) {
    ++gate_->refused_calls_;
    return absl::ResourceExhaustedError(absl::StrCat("calls in progress hold ", full));
  }
  gate_->bytes_ += bytes;
  account_->second.bytes += bytes;
  bytes_ += bytes;
  return absl::OkStatus();
}

void CallGate::Ticket::Release() {
  if (gate_ == nullptr) return;
  absl::MutexLock lock(&gate_->mutex_);
  --gate_->calls_;
  gate_->bytes_ -= bytes_;
  --account_->second.calls;
  account_->second.bytes -= bytes_;
  gate_->ForgetIfIdle(*account_);
  gate_ = nullptr;
  bytes_ = 0;
}

std::string CallGate::FullOfBytes(const Account& account, size_t bytes) const {
  if (bytes > limits_.bytes - bytes_)
    return absl::StrCat("limits.call_bytes = ", limits_.bytes, " bytes");
  const size_t of_tenant = limits_.bytes - limits_.bytes / 4;
  if (account.bytes + bytes > of_tenant)
    return absl::StrCat("a tenant's part of limits.call_bytes, ", of_tenant, " bytes");
  return {};
}

absl::StatusOr<CallGate::Ticket> CallGate::Admit(std::string_view tenant, size_t bytes) {
  absl::MutexLock lock(&mutex_);
  Accounts::value_type& named = *accounts_.try_emplace(std::string(tenant)).first;
  Account& account = named.second;
  std::string full = calls_ >= limits_.calls                ? "limits.calls"
                     : account.calls >= CallsMaxOf(account) ? "the tenant's part of limits.calls"
                                                            : FullOfBytes(account, bytes);
  if (!full.empty()) {
    ++refused_calls_;
    ForgetIfIdle(named);
    return absl::ResourceExhaustedError(
        absl::StrCat("too much in progress: ", full, " is reached; wait and try again"));
  }
  ++calls_;
  bytes_ += bytes;
  ++account.calls;
  account.bytes += bytes;
  return Ticket(this, &named, bytes);
}

void CallGate::SetCallsMax(std::string_view tenant, size_t calls_max) {
  absl::MutexLock lock(&mutex_);
  Accounts::value_type& named = *accounts_.try_emplace(std::string(tenant)).first;
  named.second.calls_max = calls_max;
  ForgetIfIdle(named);
}

void CallGate::ForgetIfIdle(Accounts::value_type& account) {
  if (account.second.calls == 0 && account.second.calls_max == 0)
    accounts_.erase(accounts_.find(account.first));
}

CallGate::Counters CallGate::counters() const {
  absl::MutexLock lock(&mutex_);
  return {.calls = calls_, .bytes = bytes_, .refused_calls = refused_calls_};
}

CallGate::TenantCounters CallGate::CountersOf(std::string_view tenant) const {
  absl::MutexLock lock(&mutex_);
  const auto it = accounts_.find(std::string(tenant));
  const Account account = it == accounts_.end() ? Account{} : it->second;
  return {.calls = account.calls, .bytes = account.bytes, .calls_max = CallsMaxOf(account)};
}

}  // namespace kvstore::service
