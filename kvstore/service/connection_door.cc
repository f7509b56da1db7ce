#include "kvstore/service/connection_door.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "kvstore/base/log.h"

namespace kvstore::service {
namespace {

constexpr std::string_view kHttp2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
constexpr absl::Duration kSweepPeriod = absl::Seconds(1);
constexpr absl::Duration kExhaustedPause = absl::Milliseconds(50);
constexpr size_t kAcceptsPerTurn = 64;
// Keys of epoll events: listeners by position, then the wake-up, then connections.
constexpr uint64_t kWakeKey = 1000;
constexpr uint64_t kFirstConnectionKey = 1001;

int64_t KeyOf(const Caller& caller) { return caller.uid.has_value() ? int64_t{*caller.uid} : -1; }

uint64_t InodeOf(int fd) {
  struct stat st;
  return fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode) ? uint64_t{st.st_ino} : 0;
}

}  // namespace

ConnectionDoor::ConnectionDoor(const Options& options, const AccessTable& access,
                               const Clock& clock, HandOver hand_over)
    : options_(options),
      access_(access),
      clock_(clock),
      hand_over_(std::move(hand_over)),
      next_key_(kFirstConnectionKey) {}

ConnectionDoor::~ConnectionDoor() { Stop(); }

void ConnectionDoor::AddListener(ListeningSocket socket) {
  listeners_.push_back(std::move(socket));
}

absl::Status ConnectionDoor::Start() {
  epoll_.Reset(epoll_create1(EPOLL_CLOEXEC));
  wake_.Reset(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!epoll_.is_open() || !wake_.is_open()) return absl::ErrnoToStatus(errno, "accept loop");
  epoll_event event{.events = EPOLLIN, .data = {.u64 = kWakeKey}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0)
    return absl::ErrnoToStatus(errno, "accept loop");
  for (size_t i = 0; i < listeners_.size(); ++i) {
    event = {.events = EPOLLIN, .data = {.u64 = i}};
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, listeners_[i].fd(), &event) != 0)
      return absl::ErrnoToStatus(errno, "accept loop");
  }
  thread_ = std::thread([this] { Run(); });
  pthread_setname_np(thread_.native_handle(), options_.thread_name);
  return absl::OkStatus();
}

void ConnectionDoor::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) {
    const uint64_t one = 1;
    if (write(wake_.get(), &one, sizeof one) != sizeof one)
      Log(LogLevel::kError, "cannot wake the accept loop");
    thread_.join();
  }
  waiting_.clear();
  listeners_.clear();
}

ConnectionDoor::Counters ConnectionDoor::counters() const {
  absl::MutexLock lock(&mutex_);
  return counters_;
}

void ConnectionDoor::PublishCounters() {
  counted_.connections = num_connections();
  absl::MutexLock lock(&mutex_);
  counters_ = counted_;
}

void ConnectionDoor::Run() {
  std::array<epoll_event, 64> events;
  for (;;) {
    const int count = epoll_wait(epoll_.get(), events.data(), events.size(), PollTimeoutMs());
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) return;
    }
    is_exhausted_ = false;
    for (int i = 0; i < count; ++i) {
      const uint64_t key = events[static_cast<size_t>(i)].data.u64;
      if (key < listeners_.size()) {
        AcceptAll(listeners_[key]);
      } else if (key >= kFirstConnectionKey) {
        OnReadable(key);
      }
    }
    DropSilent();
    if (clock_.Now() >= next_sweep_) SweepGone();
    PublishCounters();
    // A listener stays readable while its connection cannot be taken: without a pause the loop
    // would spin.
    if (is_exhausted_) absl::SleepFor(kExhaustedPause);
  }
}

int ConnectionDoor::PollTimeoutMs() const {
  absl::Time next = next_sweep_;
  for (const auto& [key, waiting] : waiting_) next = std::min(next, waiting.give_up);
  if (next == absl::InfiniteFuture()) return -1;
  return static_cast<int>(
      std::clamp<int64_t>(absl::ToInt64Milliseconds(next - clock_.Now()) + 1, 0, 60'000));
}

void ConnectionDoor::AcceptAll(ListeningSocket& listener) {
  for (size_t i = 0; i < kAcceptsPerTurn; ++i) {
    UniqueFd fd;
    switch (listener.Accept(&fd)) {
      case ListeningSocket::AcceptResult::kAccepted:
        ++counted_.accepted;
        Enter(std::move(fd), listener.is_unix());
        break;
      case ListeningSocket::AcceptResult::kNothing:
        return;
      case ListeningSocket::AcceptResult::kShed:
        ++counted_.refused_fds;
        SweepGone();
        break;
      case ListeningSocket::AcceptResult::kExhausted:
        ++counted_.refused_fds;
        is_exhausted_ = true;
        return;
    }
  }
}

void ConnectionDoor::Enter(UniqueFd fd, bool is_unix) {
  std::optional<Caller> caller = AccessList::LoopbackCaller();
  if (is_unix) {
    ucred peer{};
    socklen_t length = sizeof peer;
    if (getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return;
    caller = access_.Now()->CallerOf(peer.uid);
    if (!caller.has_value()) {
      if (counted_.refused_uid++ % 1000 == 0) {
        Log(LogLevel::kWarning, "connection refused: this uid may not connect",
            {{"uid", peer.uid}, {"pid", peer.pid}, {"refused_so_far", counted_.refused_uid}});
      }
      return;
    }
  }
  const CallerKey key = KeyOf(*caller);
  if (IsOverCap(key)) {
    if (counted_.refused_cap++ % 1000 == 0) {
      Log(LogLevel::kWarning, "connection refused: too many connections",
          {{"caller", caller->Label()},
           {"connections", num_connections()},
           {"refused_so_far", counted_.refused_cap}});
    }
    return;
  }
  const uint64_t connection = next_key_++;
  // Edge-triggered: bytes that are there but too few must not wake us again.
  epoll_event event{.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data = {.u64 = connection}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd.get(), &event) != 0) return;
  ++connections_by_caller_[key];
  waiting_.emplace(connection, Waiting{.fd = std::move(fd),
                                       .caller = *std::move(caller),
                                       .give_up = clock_.Now() + options_.handshake_time});
}

bool ConnectionDoor::IsOverCap(CallerKey caller) {
  const auto is_over = [&] {
    auto it = connections_by_caller_.find(caller);
    return num_connections() >= options_.connections_max ||
           (it != connections_by_caller_.end() && it->second >= options_.connections_per_uid_max);
  };
  if (!is_over()) return false;
  SweepGone();
  return is_over();
}

void ConnectionDoor::OnReadable(uint64_t key) {
  auto it = waiting_.find(key);
  if (it == waiting_.end()) return;
  Waiting& waiting = it->second;
  std::array<char, kHttp2Preface.size()> head;
  const ssize_t got = recv(waiting.fd.get(), head.data(), head.size(), MSG_PEEK | MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  const bool is_preface_so_far =
      got > 0 && kHttp2Preface.starts_with(std::string_view(head.data(), static_cast<size_t>(got)));
  if (is_preface_so_far && static_cast<size_t>(got) < kHttp2Preface.size()) return;
  const CallerKey caller_key = KeyOf(waiting.caller);
  if (!is_preface_so_far) {
    ++counted_.refused_handshake;
    waiting_.erase(it);
    Forget(caller_key);
    return;
  }
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, waiting.fd.get(), nullptr);
  handed_over_.push_back(
      {.fd = waiting.fd.get(), .inode = InodeOf(waiting.fd.get()), .caller = caller_key});
  if (next_sweep_ == absl::InfiniteFuture()) next_sweep_ = clock_.Now() + kSweepPeriod;
  UniqueFd fd = std::move(waiting.fd);
  const Caller caller = std::move(waiting.caller);
  waiting_.erase(it);
  hand_over_(std::move(fd), caller);
}

void ConnectionDoor::DropSilent() {
  const absl::Time now = clock_.Now();
  std::vector<uint64_t> silent;
  for (const auto& [key, waiting] : waiting_) {
    if (waiting.give_up <= now) silent.push_back(key);
  }
  for (uint64_t key : silent) {
    auto it = waiting_.find(key);
    const CallerKey caller = KeyOf(it->second.caller);
    if (counted_.refused_handshake++ % 1000 == 0) {
      Log(LogLevel::kInfo, "connection dropped: no HTTP/2 preface in time",
          {{"caller", it->second.caller.Label()}, {"dropped_so_far", counted_.refused_handshake}});
    }
    waiting_.erase(it);
    Forget(caller);
  }
}

void ConnectionDoor::SweepGone() {
  const auto is_gone = [this](const HandedOver& connection) {
    if (InodeOf(connection.fd) == connection.inode) return false;
    Forget(connection.caller);
    return true;
  };
  std::erase_if(handed_over_, is_gone);
  next_sweep_ = handed_over_.empty() ? absl::InfiniteFuture() : clock_.Now() + kSweepPeriod;
}

void ConnectionDoor::Forget(CallerKey caller) {
  auto it = connections_by_caller_.find(caller);
  if (--it->second == 0) connections_by_caller_.erase(it);
}

}  // namespace kvstore::service
