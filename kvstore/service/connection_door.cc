#include "kvstore/service/connection_door.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "kvstore/base/log.h"
#include "kvstore/service/http2_preface.h"

namespace kvstore::service {
namespace {

constexpr absl::Duration kSweepPeriod = absl::Seconds(1);

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
      loop_({.thread_name = options.thread_name}, clock, *this) {}

ConnectionDoor::~ConnectionDoor() { Stop(); }

void ConnectionDoor::Stop() {
  loop_.Stop();
  waiting_.clear();
}

ConnectionDoor::Counters ConnectionDoor::counters() const {
  absl::MutexLock lock(&mutex_);
  return counters_;
}

void ConnectionDoor::OnTurnEnd() {
  DropSilent();
  if (clock_.Now() >= next_sweep_) SweepGone();
  counted_.connections = num_connections();
  absl::MutexLock lock(&mutex_);
  counters_ = counted_;
}

absl::Time ConnectionDoor::NextTurnBy() const {
  absl::Time next = next_sweep_;
  for (const auto& [key, waiting] : waiting_) next = std::min(next, waiting.give_up);
  return next;
}

void ConnectionDoor::OnNoDescriptor() {
  ++counted_.refused_fds;
  SweepGone();
}

void ConnectionDoor::OnAccepted(UniqueFd fd, bool is_unix) {
  ++counted_.accepted;
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
  if (!loop_.Watch(fd.get(), connection, EPOLLIN | EPOLLRDHUP | EPOLLET)) return;
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

void ConnectionDoor::OnReady(uint64_t key, uint32_t /*events*/) {
  auto it = waiting_.find(key);
  if (it == waiting_.end()) return;
  Waiting& waiting = it->second;
  std::array<char, kHttp2Preface.size()> head;
  const ssize_t got = recv(waiting.fd.get(), head.data(), head.size(), MSG_PEEK | MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  const PrefaceSoFar preface =
      got > 0 ? CheckPreface(std::string_view(head.data(), static_cast<size_t>(got)))
              : PrefaceSoFar::kOther;
  if (preface == PrefaceSoFar::kPart) return;
  const CallerKey caller_key = KeyOf(waiting.caller);
  if (preface == PrefaceSoFar::kOther) {
    ++counted_.refused_handshake;
    waiting_.erase(it);
    Forget(caller_key);
    return;
  }
  loop_.Unwatch(waiting.fd.get());
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
