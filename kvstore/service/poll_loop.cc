#include "kvstore/service/poll_loop.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "kvstore/base/log.h"
#include "kvstore/base/thread_preference.h"

namespace kvstore::service {
namespace {

constexpr absl::Duration kExhaustedPause = absl::Milliseconds(50);
constexpr int64_t kTimeoutMaxMs = 60'000;
// Keys of our own descriptors; listener i has kListenerKey + i.
constexpr uint64_t kWakeKey = UINT64_MAX;
constexpr uint64_t kListenerKey = uint64_t{1} << 63;

}  // namespace

WakeUp::WakeUp() : event_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}

void WakeUp::operator()() const {
  const uint64_t one = 1;
  // A full counter means that a wake-up is already due.
  if (write(event_.get(), &one, sizeof one) != sizeof one && errno != EAGAIN)
    Log(LogLevel::kError, "cannot wake a thread that waits for connections");
}

PollLoop::PollLoop(const Options& options, const Clock& clock, Owner& owner)
    : options_(options), clock_(clock), owner_(owner), wake_up_(std::make_shared<const WakeUp>()) {}

PollLoop::~PollLoop() { Stop(); }

void PollLoop::AddListener(ListeningSocket socket) { listeners_.push_back(std::move(socket)); }

absl::Status PollLoop::Start() {
  epoll_.Reset(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_.is_open() || !Watch(wake_up_->event_.get(), kWakeKey, EPOLLIN))
    return absl::ErrnoToStatus(errno, options_.thread_name);
  for (size_t i = 0; i < listeners_.size(); ++i) {
    if (!Watch(listeners_[i].fd(), kListenerKey + i, EPOLLIN))
      return absl::ErrnoToStatus(errno, options_.thread_name);
  }
  thread_ = std::thread([this] { Run(); });
  pthread_setname_np(thread_.native_handle(), options_.thread_name);
  return absl::OkStatus();
}

void PollLoop::Stop() {
  is_stopping_ = true;
  if (thread_.joinable()) {
    Wake();
    thread_.join();
  }
  listeners_.clear();
}

void PollLoop::Run() {
  // Doors start connections in gRPC, which may start threads of its own from there.
  options_.is_preferred ? PreferThisThread(ThreadPreference::kBeforeOthers) : GiveWayForGood();
  std::array<epoll_event, 64> events;
  for (;;) {
    const int count = epoll_wait(epoll_.get(), events.data(), events.size(), TimeoutMs());
    if (is_stopping_) return;
    is_exhausted_ = false;
    for (int i = 0; i < count; ++i) {
      const epoll_event& event = events[static_cast<size_t>(i)];
      const uint64_t key = event.data.u64;
      if (key == kWakeKey) {
        uint64_t wakes = 0;
        (void)!read(wake_up_->event_.get(), &wakes, sizeof wakes);  // not to be told again
      } else if (key >= kListenerKey) {
        AcceptAll(listeners_[key - kListenerKey]);
      } else {
        owner_.OnReady(key, event.events);
      }
    }
    owner_.OnTurnEnd();
    if (is_exhausted_) absl::SleepFor(kExhaustedPause);
  }
}

int PollLoop::TimeoutMs() const {
  const absl::Time next = owner_.NextTurnBy();
  if (next == absl::InfiniteFuture()) return -1;
  return static_cast<int>(
      std::clamp<int64_t>(absl::ToInt64Milliseconds(next - clock_.Now()) + 1, 0, kTimeoutMaxMs));
}

void PollLoop::AcceptAll(ListeningSocket& listener) {
  for (size_t i = 0; i < options_.accepts_per_turn; ++i) {
    UniqueFd fd;
    switch (listener.Accept(&fd)) {
      case ListeningSocket::AcceptResult::kAccepted:
        owner_.OnAccepted(std::move(fd), listener.is_unix());
        break;
      case ListeningSocket::AcceptResult::kNothing:
        return;
      case ListeningSocket::AcceptResult::kShed:
        owner_.OnNoDescriptor();
        break;
      case ListeningSocket::AcceptResult::kExhausted:
        owner_.OnNoDescriptor();
        is_exhausted_ = true;
        return;
    }
  }
}

bool PollLoop::Watch(int fd, uint64_t key, uint32_t events) {
  epoll_event event{.events = events, .data = {.u64 = key}};
  return epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
}

void PollLoop::Change(int fd, uint64_t key, uint32_t events) {
  epoll_event event{.events = events, .data = {.u64 = key}};
  epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event);
}

void PollLoop::Unwatch(int fd) { epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

}  // namespace kvstore::service
