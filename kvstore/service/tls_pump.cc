#include "kvstore/service/tls_pump.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>
#include <utility>

#include "absl/strings/str_join.h"
#include "kvstore/base/log.h"

namespace kvstore::service {
namespace {

// A record carries at most this much: with room for it, SSL_read leaves nothing inside OpenSSL that
// epoll would not tell of.
constexpr size_t kRecordBytes = 16384;
constexpr size_t kPieceBytes = 4 * kRecordBytes;
constexpr uint64_t kWakeEvent = 0;  // connection k has events 2 k (inner) and 2 k + 1 (network)
constexpr uint64_t kLogEvery = 100;

}  // namespace

struct TlsPump::Connection {
  TlsPeer peer;
  UniqueFd inner;  // our end of the socket pair
  Caller caller;
  std::vector<std::string> names;
  std::string to_inner;    // decrypted, not taken by gRPC yet
  std::string to_network;  // from gRPC, not taken by TLS yet
  bool read_wants_write = false;
  bool is_inner_watched = false;
  bool has_inner_ended = false;  // gRPC is done: what it wrote is to be delivered, nothing else
  absl::Time drop_by = absl::InfiniteFuture();
};

TlsPump::TlsPump(const Options& options, const AccessTable& access,
                 std::shared_ptr<const TlsContext> context, const Clock& clock, HandOver hand_over)
    : options_(options),
      access_(access),
      clock_(clock),
      hand_over_(std::move(hand_over)),
      scratch_(kPieceBytes, '\0'),
      context_(std::move(context)) {}

TlsPump::~TlsPump() { Stop(); }

absl::Status TlsPump::Start() {
  epoll_.Reset(epoll_create1(EPOLL_CLOEXEC));
  wake_.Reset(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  epoll_event event{.events = EPOLLIN, .data = {.u64 = kWakeEvent}};
  if (!epoll_.is_open() || !wake_.is_open() ||
      epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0)
    return absl::ErrnoToStatus(errno, "TLS connections");
  thread_ = std::thread([this] { Run(); });
  pthread_setname_np(thread_.native_handle(), "kv-tls");
  return absl::OkStatus();
}

void TlsPump::Wake() {
  const uint64_t one = 1;
  // A full counter means that a wake-up is already due.
  if (write(wake_.get(), &one, sizeof one) != sizeof one && errno != EAGAIN)
    Log(LogLevel::kError, "cannot wake the TLS thread");
}

void TlsPump::Add(TlsPeer peer) {
  {
    absl::MutexLock lock(&mutex_);
    // Bounded by what the door passes on between two turns; a stopped pump takes none.
    if (stopping_ || inbox_.size() >= options_.connections_max) return;
    inbox_.push_back(std::move(peer));
  }
  Wake();
}

void TlsPump::SetContext(std::shared_ptr<const TlsContext> context) {
  absl::MutexLock lock(&mutex_);
  context_.swap(context);
}

void TlsPump::Recheck() {
  {
    absl::MutexLock lock(&mutex_);
    is_recheck_due_ = true;
  }
  Wake();
}

void TlsPump::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) {
    Wake();
    thread_.join();
  }
  connections_.clear();
  absl::MutexLock lock(&mutex_);
  inbox_.clear();
}

TlsPump::Counters TlsPump::counters() const {
  absl::MutexLock lock(&mutex_);
  return counters_;
}

void TlsPump::Run() {
  std::array<epoll_event, 64> events;
  for (;;) {
    // Draining connections are looked at by time; all else by readiness.
    const int timeout_ms = draining_ == 0 ? -1 : 100;
    const int count = epoll_wait(epoll_.get(), events.data(), events.size(), timeout_ms);
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) return;
    }
    for (int i = 0; i < count; ++i) {
      const epoll_event& event = events[static_cast<size_t>(i)];
      if (event.data.u64 == kWakeEvent) continue;
      const bool is_network = event.data.u64 % 2 == 1;
      // The peer has gone in both directions: it would be reported again and again while gRPC does
      // not take what is left.
      if (is_network && (event.events & (EPOLLHUP | EPOLLERR)) != 0) {
        if (connections_.contains(event.data.u64 / 2)) End(event.data.u64 / 2);
      } else {
        OnReady(event.data.u64 / 2);
      }
    }
    DrainInbox();
    if (draining_ > 0) DropUndrained();
    counted_.connections = connections_.size();
    absl::MutexLock lock(&mutex_);
    counters_ = counted_;
  }
}

void TlsPump::DrainInbox() {
  uint64_t wakes = 0;
  // Fails when nobody woke us.
  if (read(wake_.get(), &wakes, sizeof wakes) != sizeof wakes) return;
  std::vector<TlsPeer> peers;
  bool is_recheck_due = false;
  std::shared_ptr<const TlsContext> context;
  {
    absl::MutexLock lock(&mutex_);
    peers.swap(inbox_);
    is_recheck_due = std::exchange(is_recheck_due_, false);
    context = context_;
  }
  if (is_recheck_due) RecheckAll(*context);
  for (TlsPeer& peer : peers) Enter(std::move(peer), *context);
}

void TlsPump::Enter(TlsPeer peer, const TlsContext& context) {
  auto connection = std::make_unique<Connection>();
  connection->names = PeerNames(peer.ssl.get()).value_or(std::vector<std::string>());
  std::optional<Caller> caller = access_.Now()->CallerOf(connection->names);
  // The door may have let it in under a context that has been replaced since.
  if (!caller.has_value() || !context.Accepts(peer.ssl.get())) {
    if (counted_.refused_name++ % kLogEvery == 0) {
      Log(LogLevel::kWarning, "TLS connection refused: no tenant, or several, list its certificate",
          {{"names", absl::StrJoin(connection->names, ",")},
           {"refused_so_far", counted_.refused_name}});
    }
    return;
  }
  if (IsOverCap(*caller)) {
    if (counted_.refused_cap++ % kLogEvery == 0)
      Log(LogLevel::kWarning, "TLS connection refused: too many connections",
          {{"tenant", caller->home_tenant}, {"refused_so_far", counted_.refused_cap}});
    return;
  }
  std::array<int, 2> pair;
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair.data()) != 0) return;
  connection->inner.Reset(pair[0]);
  UniqueFd outer(pair[1]);
  connection->caller = *std::move(caller);
  connection->to_inner = std::move(peer.head);
  connection->peer = std::move(peer);
  const uint64_t key = next_key_++;
  epoll_event event{.events = 0, .data = {.u64 = 2 * key + 1}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, connection->peer.fd.get(), &event) != 0) return;
  ++connections_by_tenant_[connection->caller.home_tenant];
  const Caller& who = connections_.emplace(key, std::move(connection)).first->second->caller;
  hand_over_(std::move(outer), who);
  // What the door has decrypted beyond the preface is inside OpenSSL: epoll does not tell of it.
  OnReady(key);
}

bool TlsPump::IsOverCap(const Caller& caller) const {
  const auto of_tenant = connections_by_tenant_.find(caller.home_tenant);
  return connections_.size() >= options_.connections_max ||
         (of_tenant != connections_by_tenant_.end() &&
          of_tenant->second >= options_.connections_per_tenant_max);
}

void TlsPump::RecheckAll(const TlsContext& context) {
  const std::shared_ptr<const AccessList> access = access_.Now();
  std::vector<uint64_t> ending;
  for (const auto& [key, connection] : connections_) {
    if (access->CallerOf(connection->names) != connection->caller ||
        !context.Accepts(connection->peer.ssl.get()))
      ending.push_back(key);
  }
  for (uint64_t key : ending) {
    ++counted_.ended_by_reload;
    End(key);
  }
}

void TlsPump::OnReady(uint64_t key) {
  auto it = connections_.find(key);
  if (it == connections_.end()) return;
  Connection& connection = *it->second;
  if (PumpIn(connection) == Outcome::kEnd || PumpOut(connection) == Outcome::kEnd) return End(key);
  if (connection.has_inner_ended && connection.drop_by == absl::InfiniteFuture()) {
    connection.drop_by = clock_.Now() + options_.drain_time;
    ++draining_;
  }
  Watch(key, connection);
}

// Network to gRPC.
TlsPump::Outcome TlsPump::PumpIn(Connection& connection) {
  if (connection.has_inner_ended) return Outcome::kGoOn;
  if (!connection.to_inner.empty()) {
    std::string waiting;
    waiting.swap(connection.to_inner);
    SendInner(connection, waiting);
    if (!connection.to_inner.empty()) return Outcome::kGoOn;
  }
  connection.read_wants_write = false;
  size_t filled = 0;
  while (filled + kRecordBytes <= scratch_.size()) {
    ERR_clear_error();
    SSL* ssl = connection.peer.ssl.get();
    const int got = SSL_read(ssl, scratch_.data() + filled, static_cast<int>(kRecordBytes));
    if (got > 0) {
      filled += static_cast<size_t>(got);
      continue;
    }
    const int error = SSL_get_error(ssl, got);
    connection.read_wants_write = error == SSL_ERROR_WANT_WRITE;
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) break;
    return Outcome::kEnd;  // closed, cut off, or not TLS any more
  }
  SendInner(connection, std::string_view(scratch_).substr(0, filled));
  return Outcome::kGoOn;
}

// What gRPC does not take now is kept in to_inner. If it has closed its end, the bytes are of no
// use to anybody; PumpOut() delivers what it wrote before.
void TlsPump::SendInner(Connection& connection, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(connection.inner.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno != EAGAIN) return;
    if (sent < 0) break;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  connection.to_inner.assign(bytes);
}

// gRPC to network.
TlsPump::Outcome TlsPump::PumpOut(Connection& connection) {
  if (!connection.to_network.empty()) {
    std::string waiting;
    waiting.swap(connection.to_network);
    if (Send(connection, waiting) == Outcome::kEnd) return Outcome::kEnd;
  }
  if (connection.to_network.empty() && !connection.has_inner_ended) {
    const ssize_t got = recv(connection.inner.get(), scratch_.data(), scratch_.size(), 0);
    if (got > 0) {
      const std::string_view bytes(scratch_.data(), static_cast<size_t>(got));
      if (Send(connection, bytes) == Outcome::kEnd) return Outcome::kEnd;
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
      connection.has_inner_ended = true;
    }
  }
  const bool is_delivered = connection.has_inner_ended && connection.to_network.empty();
  return is_delivered ? Outcome::kEnd : Outcome::kGoOn;
}

// What TLS does not take now is kept in to_network.
TlsPump::Outcome TlsPump::Send(Connection& connection, std::string_view bytes) {
  SSL* ssl = connection.peer.ssl.get();
  while (!bytes.empty()) {
    ERR_clear_error();
    const int sent = SSL_write(ssl, bytes.data(), static_cast<int>(bytes.size()));
    if (sent > 0) {
      bytes.remove_prefix(static_cast<size_t>(sent));
      continue;
    }
    const int error = SSL_get_error(ssl, sent);
    if (error != SSL_ERROR_WANT_WRITE && error != SSL_ERROR_WANT_READ) return Outcome::kEnd;
    break;
  }
  connection.to_network.assign(bytes);
  return Outcome::kGoOn;
}

// Each side is watched for what can be done next. The inner side leaves epoll when there is
// nothing: its hang-up would be reported again and again while the network is slow.
void TlsPump::Watch(uint64_t key, Connection& connection) {
  const bool wants_in = connection.to_inner.empty() && !connection.has_inner_ended;
  const bool wants_out = !connection.to_network.empty() || connection.read_wants_write;
  epoll_event event{.events = (wants_in ? EPOLLIN : 0u) | (wants_out ? EPOLLOUT : 0u),
                    .data = {.u64 = 2 * key + 1}};
  epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, connection.peer.fd.get(), &event);
  const bool takes_more = connection.to_network.empty() && !connection.has_inner_ended;
  event = {.events = (takes_more ? EPOLLIN : 0u) | (connection.to_inner.empty() ? 0u : EPOLLOUT),
           .data = {.u64 = 2 * key}};
  const bool is_wanted = event.events != 0;
  if (!is_wanted && !connection.is_inner_watched) return;
  const int operation = !is_wanted                    ? EPOLL_CTL_DEL
                        : connection.is_inner_watched ? EPOLL_CTL_MOD
                                                      : EPOLL_CTL_ADD;
  epoll_ctl(epoll_.get(), operation, connection.inner.get(), &event);
  connection.is_inner_watched = is_wanted;
}

void TlsPump::End(uint64_t key) {
  auto it = connections_.find(key);
  Connection& connection = *it->second;
  if (connection.drop_by != absl::InfiniteFuture()) --draining_;
  ERR_clear_error();
  SSL_shutdown(connection.peer.ssl.get());  // tells the peer; best effort
  auto of_tenant = connections_by_tenant_.find(connection.caller.home_tenant);
  if (--of_tenant->second == 0) connections_by_tenant_.erase(of_tenant);
  connections_.erase(it);
}

void TlsPump::DropUndrained() {
  const absl::Time now = clock_.Now();
  std::vector<uint64_t> late;
  for (const auto& [key, connection] : connections_) {
    if (connection->drop_by <= now) late.push_back(key);
  }
  for (uint64_t key : late) End(key);
}

}  // namespace kvstore::service
