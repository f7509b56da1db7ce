#include "kvstore/service/tls_pump.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/epoll.h>
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
constexpr absl::Duration kDrainLookEvery = absl::Milliseconds(100);
constexpr uint64_t kLogEvery = 100;

// A connection has a key for each of its descriptors.
uint64_t InnerKey(uint64_t connection) { return 2 * connection; }
uint64_t NetworkKey(uint64_t connection) { return 2 * connection + 1; }

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
      context_(std::move(context)),
      loop_({.thread_name = "kv-tls"}, clock, *this) {}

TlsPump::~TlsPump() { Stop(); }

void TlsPump::Add(TlsPeer peer) {
  {
    absl::MutexLock lock(&mutex_);
    // Bounded by what the door passes on between two turns; a stopped pump takes none.
    if (stopping_ || inbox_.size() >= options_.connections_max) return;
    inbox_.push_back(std::move(peer));
  }
  loop_.Wake();
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
  loop_.Wake();
}

void TlsPump::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  loop_.Stop();
  connections_.clear();
  absl::MutexLock lock(&mutex_);
  inbox_.clear();
}

TlsPump::Counters TlsPump::counters() const {
  absl::MutexLock lock(&mutex_);
  return counters_;
}

void TlsPump::OnReady(uint64_t event, uint32_t events) {
  const uint64_t key = event / 2;
  // The peer has gone in both directions: it would be reported again and again while gRPC does not
  // take what is left.
  if (event == NetworkKey(key) && (events & (EPOLLHUP | EPOLLERR)) != 0) {
    if (connections_.contains(key)) End(key);
  } else {
    Pump(key);
  }
}

void TlsPump::OnTurnEnd() {
  DrainInbox();
  if (draining_ > 0) DropUndrained();
  counted_.connections = connections_.size();
  absl::MutexLock lock(&mutex_);
  counters_ = counted_;
}

// Draining connections are looked at by time; all else by readiness.
absl::Time TlsPump::NextTurnBy() const {
  return draining_ == 0 ? absl::InfiniteFuture() : clock_.Now() + kDrainLookEvery;
}

void TlsPump::DrainInbox() {
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
  if (!loop_.Watch(connection->peer.fd.get(), NetworkKey(key), 0)) return;
  ++connections_by_tenant_[connection->caller.home_tenant];
  const Caller& who = connections_.emplace(key, std::move(connection)).first->second->caller;
  hand_over_(std::move(outer), who);
  // What the door has decrypted beyond the preface is inside OpenSSL: epoll does not tell of it.
  Pump(key);
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

void TlsPump::Pump(uint64_t key) {
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
  loop_.Change(connection.peer.fd.get(), NetworkKey(key),
               (wants_in ? EPOLLIN : 0u) | (wants_out ? EPOLLOUT : 0u));
  const bool takes_more = connection.to_network.empty() && !connection.has_inner_ended;
  const uint32_t inner =
      (takes_more ? EPOLLIN : 0u) | (connection.to_inner.empty() ? 0u : EPOLLOUT);
  const bool is_wanted = inner != 0;
  if (is_wanted && connection.is_inner_watched) {
    loop_.Change(connection.inner.get(), InnerKey(key), inner);
  } else if (is_wanted) {
    (void)loop_.Watch(connection.inner.get(), InnerKey(key), inner);
  } else if (connection.is_inner_watched) {
    loop_.Unwatch(connection.inner.get());
  }
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
