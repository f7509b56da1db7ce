#include "kvstore/service/tls_door.h"

#include <openssl/ssl.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>
#include <utility>

#include "kvstore/base/log.h"

namespace kvstore::service {
namespace {

constexpr std::string_view kHttp2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
constexpr absl::Duration kExhaustedPause = absl::Milliseconds(50);
constexpr size_t kAcceptsPerTurn = 16;
constexpr uint64_t kWakeKey = 1000;
constexpr uint64_t kFirstConnectionKey = 1001;
constexpr uint64_t kLogEvery = 100;  // refusals

}  // namespace

TlsDoor::TlsDoor(const Options& options, std::shared_ptr<const TlsContext> context,
                 const Clock& clock, PassOn pass_on)
    : options_(options),
      clock_(clock),
      pass_on_(std::move(pass_on)),
      next_key_(kFirstConnectionKey),
      context_(std::move(context)) {}

TlsDoor::~TlsDoor() { Stop(); }

void TlsDoor::AddListener(ListeningSocket socket) { listeners_.push_back(std::move(socket)); }

absl::Status TlsDoor::Start() {
  epoll_.Reset(epoll_create1(EPOLL_CLOEXEC));
  wake_.Reset(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!epoll_.is_open() || !wake_.is_open()) return absl::ErrnoToStatus(errno, "TLS accept loop");
  epoll_event event{.events = EPOLLIN, .data = {.u64 = kWakeKey}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0)
    return absl::ErrnoToStatus(errno, "TLS accept loop");
  for (size_t i = 0; i < listeners_.size(); ++i) {
    event = {.events = EPOLLIN, .data = {.u64 = i}};
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, listeners_[i].fd(), &event) != 0)
      return absl::ErrnoToStatus(errno, "TLS accept loop");
  }
  thread_ = std::thread([this] { Run(); });
  pthread_setname_np(thread_.native_handle(), "kv-tls-door");
  return absl::OkStatus();
}

void TlsDoor::SetContext(std::shared_ptr<const TlsContext> context) {
  absl::MutexLock lock(&mutex_);
  context_.swap(context);
}

void TlsDoor::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) {
    const uint64_t one = 1;
    if (write(wake_.get(), &one, sizeof one) != sizeof one)
      Log(LogLevel::kError, "cannot wake the TLS accept loop");
    thread_.join();
  }
  entering_.clear();
  listeners_.clear();
}

TlsDoor::Counters TlsDoor::counters() const {
  absl::MutexLock lock(&mutex_);
  return counters_;
}

void TlsDoor::Run() {
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
        OnReady(key);
      }
    }
    DropSilent();
    counted_.handshakes = entering_.size();
    {
      absl::MutexLock lock(&mutex_);
      counters_ = counted_;
    }
    if (is_exhausted_) absl::SleepFor(kExhaustedPause);
  }
}

// Keys rise and every handshake gets the same time: the first gives up first.
int TlsDoor::PollTimeoutMs() const {
  if (entering_.empty()) return -1;
  return static_cast<int>(std::clamp<int64_t>(
      absl::ToInt64Milliseconds(entering_.begin()->second.give_up - clock_.Now()) + 1, 0, 60'000));
}

void TlsDoor::AcceptAll(ListeningSocket& listener) {
  for (size_t i = 0; i < kAcceptsPerTurn; ++i) {
    UniqueFd fd;
    switch (listener.Accept(&fd)) {
      case ListeningSocket::AcceptResult::kAccepted:
        ++counted_.accepted;
        Enter(std::move(fd));
        break;
      case ListeningSocket::AcceptResult::kNothing:
        return;
      case ListeningSocket::AcceptResult::kShed:
        ++counted_.refused_fds;
        break;
      case ListeningSocket::AcceptResult::kExhausted:
        ++counted_.refused_fds;
        is_exhausted_ = true;
        return;
    }
  }
}

void TlsDoor::Enter(UniqueFd fd) {
  std::shared_ptr<const TlsContext> context;
  {
    absl::MutexLock lock(&mutex_);
    context = context_;
  }
  SslPtr ssl = context->Accept(fd.get());
  if (ssl == nullptr) return;
  if (entering_.size() >= options_.handshakes_max)
    Refuse(entering_.begin()->first, "more handshakes than are served at a time");
  const uint64_t key = next_key_++;
  epoll_event event{.events = EPOLLIN, .data = {.u64 = key}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd.get(), &event) != 0) return;
  entering_.emplace(key, Entering{.peer = {.fd = std::move(fd), .ssl = std::move(ssl), .head = {}},
                                  .give_up = clock_.Now() + options_.handshake_time});
}

void TlsDoor::OnReady(uint64_t key) {
  auto it = entering_.find(key);
  if (it == entering_.end()) return;
  Entering& entering = it->second;
  const Step step = Advance(entering);
  if (step == Step::kFailed) return Refuse(key, TlsErrorText(entering.peer.ssl.get()));
  if (step == Step::kDone) {
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, entering.peer.fd.get(), nullptr);
    TlsPeer peer = std::move(entering.peer);
    entering_.erase(it);
    return pass_on_(std::move(peer));
  }
  epoll_event event{.events = step == Step::kWaitRead ? EPOLLIN : EPOLLOUT, .data = {.u64 = key}};
  epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, entering.peer.fd.get(), &event);
}

TlsDoor::Step TlsDoor::AfterError(Entering& entering, int result) {
  switch (SSL_get_error(entering.peer.ssl.get(), result)) {
    case SSL_ERROR_WANT_READ:
      return Step::kWaitRead;
    case SSL_ERROR_WANT_WRITE:
      return Step::kWaitWrite;
    default:
      return Step::kFailed;
  }
}

TlsDoor::Step TlsDoor::Advance(Entering& entering) {
  SSL* ssl = entering.peer.ssl.get();
  if (!entering.is_established) {
    const int result = SSL_accept(ssl);
    if (result != 1) return AfterError(entering, result);
    if (!HasHttp2(ssl)) return Step::kFailed;
    entering.is_established = true;
  }
  std::string& head = entering.peer.head;
  while (head.size() < kHttp2Preface.size()) {
    std::array<char, kHttp2Preface.size()> bytes;
    const int got = SSL_read(ssl, bytes.data(), static_cast<int>(bytes.size() - head.size()));
    if (got <= 0) return AfterError(entering, got);
    head.append(bytes.data(), static_cast<size_t>(got));
    if (!kHttp2Preface.starts_with(head)) return Step::kFailed;
  }
  return Step::kDone;
}

void TlsDoor::Refuse(uint64_t key, const std::string& why) {
  if (counted_.refused_handshake++ % kLogEvery == 0) {
    Log(LogLevel::kWarning, "TLS connection refused",
        {{"why", why}, {"refused_so_far", counted_.refused_handshake}});
  }
  entering_.erase(key);
}

void TlsDoor::DropSilent() {
  const absl::Time now = clock_.Now();
  while (!entering_.empty() && entering_.begin()->second.give_up <= now)
    Refuse(entering_.begin()->first, "no TLS handshake in time");
}

}  // namespace kvstore::service
