#include "kvstore/client/connection.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::client {
namespace {

constexpr absl::Duration kHelloTimeout = absl::Seconds(1);
constexpr absl::Duration kBackoffMin = absl::Milliseconds(20);
constexpr absl::Duration kBackoffMax = absl::Seconds(1);
constexpr absl::Duration kHousekeepingTimeout =
    absl::Seconds(2);  // of Release, Renew and Abort calls
constexpr absl::Duration kRenewPeriodUnknown =
    absl::Seconds(1);  // until the daemon has told its lease time
// How long a call over TCP waits for the channel before it fails for want of one.
constexpr absl::Duration kConnectPatience = absl::Milliseconds(200);
constexpr size_t kLeasesPerCallMax = 4096;
constexpr int kBadBlocksPerCallMax = 1024;

}  // namespace

absl::Duration TimeLeft(absl::Time deadline, absl::Duration by_default) {
  if (deadline == absl::InfiniteFuture()) return by_default;
  return std::max(deadline - absl::Now(), absl::ZeroDuration());
}

Connection::Connection(ClientOptions options, Target target)
    : options_(std::move(options)), target_(std::move(target)) {}

absl::StatusOr<std::shared_ptr<Connection>> Connection::Create(ClientOptions options) {
  ASSIGN_OR_RETURN(Target target, ParseTarget(options.target));
  std::shared_ptr<Connection> made(new Connection(std::move(options), std::move(target)));
  ASSIGN_OR_RETURN(made->channel_, MakeChannel(made->options_.target, made->options_.tls));
  made->stub_ = v1::KvStore::NewStub(made->channel_);
  if (!made->target_.is_unix) return made;
  made->wake_.Reset(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!made->wake_.is_open()) return absl::UnavailableError("no file descriptor is free");
  made->thread_ = std::thread([raw = made.get()] { raw->Run(); });
  pthread_setname_np(made->thread_.native_handle(), "kvstore-client");
  return made;
}

Connection::~Connection() {
  Shutdown();
  if (!CallbackScope::IsActive()) return;
  std::thread([channel = std::move(channel_), stub = std::move(stub_)]() mutable {
    stub.reset();
    channel.reset();
  }).detach();
}

void Connection::Shutdown() {
  {
    absl::MutexLock lock(&calls_mutex_);
    calls_closed_ = true;
    for (grpc::ClientContext* context : calls_) context->TryCancel();
  }
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) {
    Wake();
    thread_.join();
  }
  absl::MutexLock lock(&calls_mutex_);
  calls_mutex_.Await(absl::Condition(this, &Connection::HasNoCalls));
}

bool Connection::BeginCall(grpc::ClientContext* context) {
  absl::MutexLock lock(&calls_mutex_);
  if (calls_closed_) return false;
  calls_.insert(context);
  return true;
}

void Connection::EndCall(grpc::ClientContext* context) {
  absl::MutexLock lock(&calls_mutex_);
  calls_.erase(context);
}

void Connection::PrepareHousekeeping(grpc::ClientContext* context,
                                     const MemorySession& session) const {
  Prepare(context, &session, kHousekeepingTimeout);
  // Without a daemon this thread must go on to look for one.
  context->set_wait_for_ready(false);
}

void Connection::Prepare(grpc::ClientContext* context, const MemorySession* session,
                         absl::Duration timeout) const {
  context->set_deadline(std::chrono::system_clock::now() + absl::ToChronoMicroseconds(timeout));
  if (!options_.tenant.empty()) context->AddMetadata(kTenantMetadata, options_.tenant);
  if (session == nullptr && !target_.is_unix &&
      channel_->GetState(/*try_to_connect=*/true) != GRPC_CHANNEL_READY) {
    // gRPC connects only while somebody polls, and calls that fail at once never poll for as long
    // as a TLS handshake takes: without this a client that was cut off would stay so.
    channel_->WaitForConnected(std::chrono::system_clock::now() +
                               absl::ToChronoMicroseconds(std::min(timeout, kConnectPatience)));
  }
  if (session == nullptr) return;
  context->AddMetadata(kSessionMetadata, session->token());
  // A session tells that there is a daemon: if the channel has not noticed yet, wait for it rather
  // than fail.
  context->set_wait_for_ready(true);
}

absl::Status Connection::StatusOf(const grpc::Status& status,
                                  const std::shared_ptr<MemorySession>& session) {
  if (status.error_code() != grpc::StatusCode::UNAUTHENTICATED || session == nullptr)
    return FromGrpc(status);
  OnSessionRefused(session);
  return absl::UnavailableError(
      "the daemon does not know our session: it has been restarted; connecting again");
}

absl::StatusOr<std::shared_ptr<MemorySession>> Connection::Session(absl::Duration timeout) {
  if (!target_.is_unix)
    return absl::FailedPreconditionError(
        "there is no shared memory over TCP: use Put and Get, or a unix: target");
  absl::MutexLock lock(&mutex_);
  if (!mutex_.AwaitWithTimeout(absl::Condition(this, &Connection::IsNotOpening), timeout)) {
    return absl::DeadlineExceededError(absl::StrCat("still connecting to ", options_.target));
  }
  if (stopping_) return absl::CancelledError("the client is being destroyed");
  if (session_state_ == SessionState::kFailed) return session_error_;
  return session_;
}

std::shared_ptr<MemorySession> Connection::CurrentSession() {
  absl::MutexLock lock(&mutex_);
  return session_state_ == SessionState::kOpen ? session_ : nullptr;
}

absl::Status Connection::WaitSession(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  if (mutex_.AwaitWithTimeout(absl::Condition(this, &Connection::IsOpen), timeout) && !stopping_)
    return absl::OkStatus();
  if (stopping_) return absl::CancelledError("the client is being destroyed");
  const std::string why =
      session_error_.ok() ? std::string("no answer yet") : std::string(session_error_.message());
  return absl::UnavailableError(absl::StrCat(options_.target, ": ", why));
}

void Connection::OnSessionRefused(const std::shared_ptr<MemorySession>& session) {
  session->MarkLost();
  Wake();
}

void Connection::set_lease_time(absl::Duration lease_time) {
  const int64_t lease_us = absl::ToInt64Microseconds(lease_time);
  if (lease_us_.exchange(lease_us, std::memory_order_relaxed) != lease_us) Wake();
}

void Connection::HoldLease(const std::shared_ptr<MemorySession>& session, uint64_t lease) {
  absl::MutexLock lock(&mutex_);
  held_leases_[lease] = session;
}

void Connection::ReleaseLease(const std::shared_ptr<MemorySession>& session, uint64_t lease,
                              std::vector<uint32_t> bad_blocks) {
  bool is_first = false;
  {
    absl::MutexLock lock(&mutex_);
    held_leases_.erase(lease);
    if (stopping_ || session->is_lost()) return;
    if (bad_blocks.empty() && session->TryRelease(lease)) return;
    is_first = released_.empty();
    released_.push_back({session, lease, std::move(bad_blocks)});
  }
  if (is_first) Wake();
}

void Connection::AbortReservation(const std::shared_ptr<MemorySession>& session,
                                  uint64_t reservation) {
  {
    absl::MutexLock lock(&mutex_);
    if (stopping_ || session->is_lost()) return;
    aborted_.push_back({session, reservation});
  }
  Wake();
}

bool Connection::PostTask(Task task) {
  {
    absl::MutexLock lock(&mutex_);
    if (stopping_ || !thread_.joinable()) return false;
    tasks_.push_back(std::move(task));
  }
  Wake();
  return true;
}

void Connection::Wake() {
  if (!wake_.is_open()) return;
  const uint64_t one = 1;
  // EAGAIN: a wake-up is due already.
  while (write(wake_.get(), &one, sizeof one) < 0 && errno == EINTR) {
  }
}

bool Connection::IsStopping() {
  absl::MutexLock lock(&mutex_);
  return stopping_;
}

absl::Duration Connection::RenewPeriod() const {
  const int64_t lease_us = lease_us_.load(std::memory_order_relaxed);
  return lease_us == 0 ? kRenewPeriodUnknown : absl::Microseconds(lease_us) / 3;
}

// The client's thread. Session opening blocks it for at most kHelloTimeout; housekeeping calls for
// their own deadline.
void Connection::Run() {
  std::minstd_rand jitter(std::random_device{}());
  absl::Duration backoff = kBackoffMin;
  absl::Time next_attempt = absl::InfinitePast();
  absl::Time next_renewal = absl::Now() + RenewPeriod();
  while (!IsStopping()) {
    std::shared_ptr<MemorySession> session = CurrentSession();
    if (session != nullptr && session->is_lost()) {
      absl::MutexLock lock(&mutex_);
      session_.reset();
      session_state_ = SessionState::kOpening;
      next_attempt = absl::InfinitePast();
      backoff = kBackoffMin;
      continue;
    }
    absl::Duration wait = absl::InfiniteDuration();
    if (session == nullptr) {
      if (absl::Now() >= next_attempt) {
        OpenSession();
        if (CurrentSession() != nullptr) continue;
        // Half to one and a half times: clients of one daemon must not come back in step.
        next_attempt = absl::Now() + backoff * (0.5 + static_cast<double>(jitter() % 1000) / 1000);
        backoff = std::min(backoff * 2, kBackoffMax);
      }
      wait = next_attempt - absl::Now();
    }
    // Renewed thrice a lease time, whenever it was acquired; so acquiring need not wake this
    // thread.
    next_renewal = std::min(next_renewal, absl::Now() + RenewPeriod());
    if (absl::Now() >= next_renewal) {
      SendRenewals();
      next_renewal = absl::Now() + RenewPeriod();
    }
    WaitForWork(std::max(std::min(wait, next_renewal - absl::Now()), absl::ZeroDuration()));
    RunTasks();
    SendReleases();
    SendAborts();
  }
  RunTasks();  // their callbacks are promised; the calls inside are cancelled
}

void Connection::WaitForWork(absl::Duration timeout) {
  std::shared_ptr<MemorySession> session = CurrentSession();
  std::array<pollfd, 2> fds = {
      pollfd{.fd = wake_.get(), .events = POLLIN, .revents = 0},
      pollfd{.fd = session == nullptr ? -1 : session->fd(), .events = POLLRDHUP, .revents = 0}};
  const int timeout_ms = timeout == absl::InfiniteDuration()
                             ? -1
                             : static_cast<int>(std::clamp<int64_t>(
                                   absl::ToInt64Milliseconds(timeout) + 1, 0, 600'000));
  poll(fds.data(), fds.size(), timeout_ms);
  uint64_t count = 0;
  // EAGAIN: nobody woke us.
  while (read(wake_.get(), &count, sizeof count) < 0 && errno == EINTR) {
  }
  if (session != nullptr && (fds[1].revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0)
    session->MarkLost();
}

void Connection::OpenSession() {
  absl::StatusOr<std::shared_ptr<MemorySession>> opened =
      MemorySession::Open(target_.address + kMemorySocketSuffix, options_.tenant, options_.access,
                          options_.device_slabs, kHelloTimeout);
  absl::MutexLock lock(&mutex_);
  if (opened.ok()) {
    session_ = *std::move(opened);
    session_state_ = SessionState::kOpen;
    session_error_ = absl::OkStatus();
  } else {
    session_state_ = SessionState::kFailed;
    session_error_ = opened.status();
  }
}

void Connection::RunTasks() {
  std::vector<Task> tasks;
  {
    absl::MutexLock lock(&mutex_);
    tasks.swap(tasks_);
  }
  for (Task& task : tasks) task();
}

// Housekeeping calls fail without consequence: what they tell is implied when the lease expires or
// the session ends.
void Connection::SendReleases() {
  std::vector<Released> released;
  {
    absl::MutexLock lock(&mutex_);
    released.swap(released_);
  }
  for (size_t begin = 0; begin < released.size();) {
    const std::shared_ptr<MemorySession> session = released[begin].session;
    v1::ReleaseRequest request;
    for (; begin < released.size() && released[begin].session == session; ++begin) {
      if (static_cast<size_t>(request.lease_size()) >= kLeasesPerCallMax) break;
      request.add_lease(released[begin].lease);
      for (uint32_t block : released[begin].bad_blocks) {
        if (request.bad_size() >= kBadBlocksPerCallMax) break;
        auto* bad = request.add_bad();
        bad->set_lease(released[begin].lease);
        bad->set_block(block);
      }
    }
    if (session->is_lost()) continue;
    grpc::ClientContext context;
    PrepareHousekeeping(&context, *session);
    if (!BeginCall(&context)) return;
    v1::ReleaseResponse response;
    StatusOf(stub_->Release(&context, request, &response), session).IgnoreError();
    EndCall(&context);
  }
}

void Connection::SendAborts() {
  std::vector<Aborted> aborted;
  {
    absl::MutexLock lock(&mutex_);
    aborted.swap(aborted_);
  }
  for (const Aborted& one : aborted) {
    if (one.session->is_lost()) continue;
    grpc::ClientContext context;
    PrepareHousekeeping(&context, *one.session);
    if (!BeginCall(&context)) return;
    v1::AbortRequest request;
    request.set_reservation(one.reservation);
    v1::AbortResponse response;
    StatusOf(stub_->Abort(&context, request, &response), one.session).IgnoreError();
    EndCall(&context);
  }
}

void Connection::SendRenewals() {
  std::shared_ptr<MemorySession> session = CurrentSession();
  if (session == nullptr) return;
  std::vector<uint64_t> leases;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [lease, owner] : held_leases_) {
      if (owner == session) leases.push_back(lease);
    }
  }
  for (size_t begin = 0; begin < leases.size(); begin += kLeasesPerCallMax) {
    v1::RenewRequest request;
    const size_t end = std::min(begin + kLeasesPerCallMax, leases.size());
    for (size_t i = begin; i < end; ++i) request.add_lease(leases[i]);
    grpc::ClientContext context;
    PrepareHousekeeping(&context, *session);
    if (!BeginCall(&context)) return;
    v1::RenewResponse response;
    StatusOf(stub_->Renew(&context, request, &response), session).IgnoreError();
    EndCall(&context);
  }
}

}  // namespace kvstore::client
