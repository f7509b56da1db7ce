#include "kvstore/service/tls_door.h"

#include <openssl/ssl.h>
#include <sys/epoll.h>

#include <array>
#include <string_view>
#include <utility>

#include "kvstore/base/log.h"
#include "kvstore/service/http2_preface.h"

namespace kvstore::service {
namespace {

// A handshake costs more than an accept.
constexpr size_t kAcceptsPerTurn = 16;
constexpr uint64_t kLogEvery = 100;  // refusals

}  // namespace

TlsDoor::TlsDoor(const Options& options, std::shared_ptr<const TlsContext> context,
                 const Clock& clock, PassOn pass_on)
    : options_(options),
      clock_(clock),
      pass_on_(std::move(pass_on)),
      context_(std::move(context)),
      loop_({.thread_name = "kv-tls-door", .accepts_per_turn = kAcceptsPerTurn}, clock, *this) {}

TlsDoor::~TlsDoor() { Stop(); }

void TlsDoor::SetContext(std::shared_ptr<const TlsContext> context) {
  absl::MutexLock lock(&mutex_);
  context_.swap(context);
}

void TlsDoor::Stop() {
  loop_.Stop();
  entering_.clear();
}

TlsDoor::Counters TlsDoor::counters() const {
  absl::MutexLock lock(&mutex_);
  return counters_;
}

void TlsDoor::OnTurnEnd() {
  DropSilent();
  counted_.handshakes = entering_.size();
  absl::MutexLock lock(&mutex_);
  counters_ = counted_;
}

// Keys rise and every handshake gets the same time: the first gives up first.
absl::Time TlsDoor::NextTurnBy() const {
  return entering_.empty() ? absl::InfiniteFuture() : entering_.begin()->second.give_up;
}

void TlsDoor::OnAccepted(UniqueFd fd, bool /*is_unix*/) {
  ++counted_.accepted;
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
  if (!loop_.Watch(fd.get(), key, EPOLLIN)) return;
  entering_.emplace(key, Entering{.peer = {.fd = std::move(fd), .ssl = std::move(ssl), .head = {}},
                                  .give_up = clock_.Now() + options_.handshake_time});
}

void TlsDoor::OnReady(uint64_t key, uint32_t /*events*/) {
  auto it = entering_.find(key);
  if (it == entering_.end()) return;
  Entering& entering = it->second;
  const Step step = Advance(entering);
  if (step == Step::kFailed) return Refuse(key, TlsErrorText(entering.peer.ssl.get()));
  if (step == Step::kDone) {
    loop_.Unwatch(entering.peer.fd.get());
    TlsPeer peer = std::move(entering.peer);
    entering_.erase(it);
    return pass_on_(std::move(peer));
  }
  loop_.Change(entering.peer.fd.get(), key, step == Step::kWaitRead ? EPOLLIN : EPOLLOUT);
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
    if (CheckPreface(head) == PrefaceSoFar::kOther) return Step::kFailed;
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
