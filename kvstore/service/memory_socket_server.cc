#include "kvstore/service/memory_socket_server.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "kvstore/base/log.h"

namespace kvstore::service {
namespace {

constexpr uint64_t kWakeKey = 1000;
constexpr uint64_t kFirstConnectionKey = 1001;
constexpr size_t kAcceptsPerTurn = 64;
constexpr absl::Duration kExhaustedPause = absl::Milliseconds(50);

enum class SendResult { kSent, kFailed };

SendResult Send(int fd, const MemoryReply& reply, std::span<const int> descriptors = {}) {
  iovec part{.iov_base = const_cast<MemoryReply*>(&reply), .iov_len = sizeof reply};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(2 * sizeof(int))> control{};
  if (!descriptors.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size_bytes());
  }
  const ssize_t sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  return sent == static_cast<ssize_t>(sizeof reply) ? SendResult::kSent : SendResult::kFailed;
}

// The name in a fixed field: zero-padded, and nothing behind the first zero. nullopt: not so.
std::optional<std::string> FieldText(const std::array<char, 64>& field) {
  const auto end = std::ranges::find(field, '\0');
  if (end == field.end() || std::any_of(end, field.end(), [](char c) { return c != '\0'; }))
    return std::nullopt;
  return std::string(field.begin(), end);
}

bool IsAccess(MemoryAccess access) {
  return access == MemoryAccess::kReadOnly || access == MemoryAccess::kReadWrite;
}

}  // namespace

void MemorySocketServer::Mailbox::Wake() {
  const uint64_t one = 1;
  // A full counter means that a wake-up is already due.
  if (write(wake.get(), &one, sizeof one) != sizeof one && errno != EAGAIN)
    Log(LogLevel::kError, "cannot wake the memory socket thread");
}

MemorySocketServer::MemorySocketServer(const Options& options, const AccessTable& access,
                                       store::Store& store, Executor& core, SessionTable& sessions,
                                       SlabExporter exporter, const Clock& clock)
    : options_(options),
      access_(access),
      store_(store),
      core_(core),
      sessions_(sessions),
      exporter_(std::move(exporter)),
      clock_(clock),
      next_key_(kFirstConnectionKey),
      mailbox_(std::make_shared<Mailbox>()) {}

MemorySocketServer::~MemorySocketServer() { Stop(); }

void MemorySocketServer::AddListener(ListeningSocket socket) {
  listeners_.push_back(std::move(socket));
}

absl::Status MemorySocketServer::Start() {
  UniqueFd wake(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  epoll_.Reset(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_.is_open() || !wake.is_open()) return absl::ErrnoToStatus(errno, "memory socket");
  epoll_event event{.events = EPOLLIN, .data = {.u64 = kWakeKey}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake.get(), &event) != 0)
    return absl::ErrnoToStatus(errno, "memory socket");
  for (size_t i = 0; i < listeners_.size(); ++i) {
    event = {.events = EPOLLIN, .data = {.u64 = i}};
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, listeners_[i].fd(), &event) != 0)
      return absl::ErrnoToStatus(errno, "memory socket");
  }
  {
    absl::MutexLock lock(&mailbox_->mutex);
    mailbox_->wake = std::move(wake);
  }
  thread_ = std::thread([this] { Run(); });
  pthread_setname_np(thread_.native_handle(), "kv-memory");
  return absl::OkStatus();
}

void MemorySocketServer::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) {
    {
      absl::MutexLock lock(&mailbox_->mutex);
      mailbox_->Wake();
    }
    thread_.join();
  }
  std::vector<Opened> opened;
  std::vector<Mapped> mapped;
  {
    absl::MutexLock lock(&mailbox_->mutex);
    mailbox_->is_closed = true;
    opened.swap(mailbox_->opened);
    mapped.swap(mailbox_->mapped);
  }
  for (const Opened& result : opened) {
    if (result.session.ok()) CloseSession(*result.session);
  }
  while (!connections_.empty()) Close(connections_.begin()->first);
  listeners_.clear();
}

void MemorySocketServer::Recheck() {
  absl::MutexLock lock(&mailbox_->mutex);
  mailbox_->is_recheck_due = true;
  mailbox_->Wake();
}

MemorySocketServer::Counters MemorySocketServer::counters() const {
  absl::MutexLock lock(&mutex_);
  return counters_;
}

void MemorySocketServer::Run() {
  std::array<epoll_event, 64> events;
  for (;;) {
    const int count = epoll_wait(epoll_.get(), events.data(), events.size(), PollTimeoutMs());
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) return;
    }
    is_exhausted_ = false;
    for (int i = 0; i < count; ++i) {
      const epoll_event& event = events[static_cast<size_t>(i)];
      if (event.data.u64 < listeners_.size()) {
        AcceptAll(listeners_[event.data.u64]);
      } else if (event.data.u64 >= kFirstConnectionKey) {
        OnEvent(event.data.u64, event.events);
      }
    }
    DrainMailbox();
    DropSilent();
    counted_.connections = connections_.size();
    {
      absl::MutexLock lock(&mutex_);
      counters_ = counted_;
    }
    if (is_exhausted_) absl::SleepFor(kExhaustedPause);
  }
}

int MemorySocketServer::PollTimeoutMs() const {
  if (silent_connections_ == 0) return -1;
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [key, connection] : connections_) next = std::min(next, connection.hello_by);
  if (next == absl::InfiniteFuture()) return -1;
  return static_cast<int>(
      std::clamp<int64_t>(absl::ToInt64Milliseconds(next - clock_.Now()) + 1, 0, 60'000));
}

void MemorySocketServer::AcceptAll(ListeningSocket& listener) {
  for (size_t i = 0; i < kAcceptsPerTurn; ++i) {
    UniqueFd fd;
    switch (listener.Accept(&fd)) {
      case ListeningSocket::AcceptResult::kAccepted:
        Enter(std::move(fd));
        break;
      case ListeningSocket::AcceptResult::kNothing:
        return;
      case ListeningSocket::AcceptResult::kShed:
        ++counted_.refused;
        break;
      case ListeningSocket::AcceptResult::kExhausted:
        ++counted_.refused;
        is_exhausted_ = true;
        return;
    }
  }
}

void MemorySocketServer::Enter(UniqueFd fd) {
  ++counted_.accepted;
  ucred peer{};
  socklen_t length = sizeof peer;
  if (getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return;
  std::optional<Caller> caller = access_.Now()->CallerOf(peer.uid);
  if (!caller.has_value()) {
    if (counted_.refused++ % 1000 == 0) {
      Log(LogLevel::kWarning, "session refused: this uid may not connect",
          {{"uid", peer.uid}, {"pid", peer.pid}});
    }
    return;
  }
  size_t& of_uid = connections_by_uid_[peer.uid];
  if (connections_.size() >= options_.connections_max ||
      of_uid >= options_.connections_per_uid_max) {
    if (of_uid == 0) connections_by_uid_.erase(peer.uid);
    if (counted_.refused++ % 1000 == 0)
      Log(LogLevel::kWarning, "session refused: too many sessions", {{"uid", peer.uid}});
    // Best effort: the client learns why.
    (void)Send(fd.get(), MemoryReply{.code = MemoryReplyCode::kTooManySessions});
    return;
  }
  const uint64_t key = next_key_++;
  epoll_event event{.events = EPOLLIN | EPOLLRDHUP, .data = {.u64 = key}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd.get(), &event) != 0) {
    if (of_uid == 0) connections_by_uid_.erase(peer.uid);
    return;
  }
  ++of_uid;
  ++silent_connections_;
  connections_.emplace(key, Connection{.fd = std::move(fd),
                                       .caller = *std::move(caller),
                                       .hello_by = clock_.Now() + options_.handshake_time,
                                       .is_waiting_for_core = false,
                                       .token = std::nullopt,
                                       .session = {},
                                       .tenant = {},
                                       .access = MemoryAccess::kReadOnly});
}

void MemorySocketServer::OnEvent(uint64_t key, uint32_t events) {
  auto it = connections_.find(key);
  if (it == connections_.end()) return;
  // A hang-up ends the session at once, also while the core works for it.
  if ((events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR)) != 0) return Close(key);
  if (it->second.is_waiting_for_core) return;
  if (OnPacket(key, it->second) == Outcome::kClose) return Close(key);
  if (it->second.is_waiting_for_core) {
    // Level-triggered: what the client sends meanwhile would wake us without end.
    epoll_event event{.events = EPOLLRDHUP, .data = {.u64 = key}};
    epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, it->second.fd.get(), &event);
  }
}

MemorySocketServer::Outcome MemorySocketServer::OnPacket(uint64_t key, Connection& connection) {
  MemoryRequest request;
  // MSG_TRUNC: the packet's real length. No control buffer: the kernel drops descriptors that a
  // client sends.
  const ssize_t got = recv(connection.fd.get(), &request, sizeof request, MSG_DONTWAIT | MSG_TRUNC);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return Outcome::kKeep;
  if (got <= 0) return Outcome::kClose;
  if (got >= static_cast<ssize_t>(sizeof request.version) &&
      request.version != kMemorySocketVersion) {
    (void)Send(connection.fd.get(), MemoryReply{.code = MemoryReplyCode::kVersionMismatch});
    return Outcome::kClose;
  }
  if (got == static_cast<ssize_t>(sizeof request) && request.reserved == 0) {
    const bool has_session = connection.token.has_value();
    if (request.kind == MemoryRequestKind::kHello && !has_session)
      return OnHello(key, connection, request);
    if (request.kind == MemoryRequestKind::kMapSlab && has_session)
      return OnMapSlab(key, connection, request);
  }
  ++counted_.malformed;
  (void)Send(connection.fd.get(), MemoryReply{.code = MemoryReplyCode::kMalformed});
  return Outcome::kClose;
}

MemorySocketServer::Outcome MemorySocketServer::OnHello(uint64_t key, Connection& connection,
                                                        const MemoryRequest& request) {
  std::optional<std::string> named = FieldText(request.tenant);
  if (!named.has_value() || !IsAccess(request.access)) {
    ++counted_.malformed;
    (void)Send(connection.fd.get(), MemoryReply{.code = MemoryReplyCode::kMalformed});
    return Outcome::kClose;
  }
  absl::StatusOr<std::string> tenant = connection.caller.TenantFor(*named);
  if (!tenant.ok()) {
    (void)Send(connection.fd.get(), MemoryReply{.code = MemoryReplyCode::kNotAllowed});
    return Outcome::kClose;
  }
  connection.tenant = *std::move(tenant);
  connection.access = request.access;
  connection.is_waiting_for_core = true;
  connection.hello_by = absl::InfiniteFuture();
  --silent_connections_;
  core_.Post([mailbox = mailbox_, &store = store_, key, tenant_name = connection.tenant] {
    absl::StatusOr<SessionId> session = store.OpenSession(tenant_name);
    bool is_closed = false;
    {
      absl::MutexLock lock(&mailbox->mutex);
      is_closed = mailbox->is_closed;
      if (!is_closed) {
        mailbox->opened.push_back({key, session});
        mailbox->Wake();
      }
    }
    if (is_closed && session.ok()) store.CloseSession(*session);
  });
  return Outcome::kKeep;
}

MemorySocketServer::Outcome MemorySocketServer::OnMapSlab(uint64_t key, Connection& connection,
                                                          const MemoryRequest& request) {
  if (request.tier >= tiers::kNumTierKinds) {
    return Send(connection.fd.get(), MemoryReply{.code = MemoryReplyCode::kNoSuchSlab}) ==
                   SendResult::kSent
               ? Outcome::kKeep
               : Outcome::kClose;
  }
  connection.is_waiting_for_core = true;
  core_.Post([mailbox = mailbox_, exporter = exporter_, key, request, tenant = connection.tenant,
              access = connection.access] {
    absl::StatusOr<ExportedSlab> slab =
        exporter(static_cast<tiers::TierKind>(request.tier), request.slab, tenant, access);
    absl::MutexLock lock(&mailbox->mutex);
    if (mailbox->is_closed) return;
    mailbox->mapped.push_back({key, std::move(slab)});
    mailbox->Wake();
  });
  return Outcome::kKeep;
}

void MemorySocketServer::DrainMailbox() {
  std::vector<Opened> opened;
  std::vector<Mapped> mapped;
  bool is_recheck_due = false;
  {
    absl::MutexLock lock(&mailbox_->mutex);
    is_recheck_due = std::exchange(mailbox_->is_recheck_due, false);
    uint64_t count = 0;
    // Fails when nobody woke us; then there is nothing to drain either.
    if (read(mailbox_->wake.get(), &count, sizeof count) != sizeof count) count = 0;
    opened.swap(mailbox_->opened);
    mapped.swap(mailbox_->mapped);
  }
  const auto go_on = [this](uint64_t key, Connection& connection, Outcome outcome) {
    if (outcome == Outcome::kClose) return Close(key);
    connection.is_waiting_for_core = false;
    epoll_event event{.events = EPOLLIN | EPOLLRDHUP, .data = {.u64 = key}};
    epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, connection.fd.get(), &event);
  };
  for (Opened& result : opened) {
    auto it = connections_.find(result.connection);
    if (it != connections_.end()) {
      go_on(result.connection, it->second, FinishOpen(it->second, result.session));
    } else if (result.session.ok()) {
      CloseSession(*result.session);  // hung up meanwhile
    }
  }
  for (Mapped& result : mapped) {
    auto it = connections_.find(result.connection);
    if (it != connections_.end())
      go_on(result.connection, it->second, FinishMap(it->second, result.slab));
  }
  if (is_recheck_due) DropUnlisted();
}

void MemorySocketServer::DropUnlisted() {
  const std::shared_ptr<const AccessList> access = access_.Now();
  std::vector<uint64_t> unlisted;
  for (const auto& [key, connection] : connections_) {
    if (access->CallerOf(*connection.caller.uid) != connection.caller) unlisted.push_back(key);
  }
  for (uint64_t key : unlisted) Close(key);
}

MemorySocketServer::Outcome MemorySocketServer::FinishOpen(
    Connection& connection, const absl::StatusOr<SessionId>& session) {
  if (!session.ok()) {
    (void)Send(connection.fd.get(), MemoryReply{.code = MemoryReplyCode::kTooManySessions});
    return Outcome::kClose;
  }
  connection.session = *session;
  absl::StatusOr<SessionToken> token = sessions_.Add({.id = *session,
                                                      .tenant = connection.tenant,
                                                      .uid = connection.caller.uid.value_or(0),
                                                      .access = connection.access});
  if (!token.ok()) {
    CloseSession(*session);
    return Outcome::kClose;
  }
  connection.token = *token;
  const MemoryReply reply{
      .code = MemoryReplyCode::kOk, .session_token = *token, .incarnation = options_.incarnation};
  return Send(connection.fd.get(), reply) == SendResult::kSent ? Outcome::kKeep : Outcome::kClose;
}

MemorySocketServer::Outcome MemorySocketServer::FinishMap(
    Connection& connection, const absl::StatusOr<ExportedSlab>& slab) {
  if (!slab.ok()) {
    const MemoryReply reply{.code = MemoryReplyCode::kNoSuchSlab};
    return Send(connection.fd.get(), reply) == SendResult::kSent ? Outcome::kKeep : Outcome::kClose;
  }
  const std::array<int, 2> descriptors = {slab->slab.get(), slab->generations.get()};
  const MemoryReply reply{.code = MemoryReplyCode::kOk, .slab_bytes = slab->slab_bytes};
  return Send(connection.fd.get(), reply, descriptors) == SendResult::kSent ? Outcome::kKeep
                                                                            : Outcome::kClose;
}

void MemorySocketServer::CloseSession(SessionId session) {
  core_.Post([&store = store_, session] { store.CloseSession(session); });
}

void MemorySocketServer::Close(uint64_t key) {
  auto it = connections_.find(key);
  Connection& connection = it->second;
  if (connection.hello_by != absl::InfiniteFuture()) --silent_connections_;
  if (connection.token.has_value()) {
    sessions_.Remove(*connection.token);
    CloseSession(connection.session);
  }
  auto of_uid = connections_by_uid_.find(connection.caller.uid.value_or(0));
  if (--of_uid->second == 0) connections_by_uid_.erase(of_uid);
  connections_.erase(it);
}

void MemorySocketServer::DropSilent() {
  if (silent_connections_ == 0) return;
  const absl::Time now = clock_.Now();
  std::vector<uint64_t> silent;
  for (const auto& [key, connection] : connections_) {
    if (connection.hello_by <= now) silent.push_back(key);
  }
  for (uint64_t key : silent) Close(key);
}

}  // namespace kvstore::service
