#include "kvstore/service/memory_socket_server.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "kvstore/base/log.h"
#include "kvstore/service/memory_packets.h"

namespace kvstore::service {
namespace {

// Of one connection; more wait in its socket.
constexpr uint32_t kReleasesInFlightMax = 64;

bool IsAccess(MemoryAccess access) {
  return access == MemoryAccess::kReadOnly || access == MemoryAccess::kReadWrite;
}

}  // namespace

void MemorySocketServer::Mailbox::Put(uint64_t connection, Answer answer) {
  {
    absl::MutexLock lock(&mutex);
    if (!is_closed) {
      answers.emplace_back(connection, std::move(answer));
      return (*wake_up)();
    }
  }
  (void)answer(nullptr);
}

MemorySocketServer::MemorySocketServer(const Options& options, const CallParts& parts,
                                       SlabExporter exporter)
    : options_(options),
      parts_(parts),
      exporter_(std::move(exporter)),
      packet_(kAcquireRequestBytesMax),
      mailbox_(std::make_shared<Mailbox>()),
      loop_({.thread_name = "kv-memory", .is_preferred = true}, parts.clock, *this) {
  mailbox_->wake_up = loop_.wake_up();
}

MemorySocketServer::~MemorySocketServer() { Stop(); }

void MemorySocketServer::Stop() {
  loop_.Stop();
  std::vector<std::pair<uint64_t, Answer>> answers;
  {
    absl::MutexLock lock(&mailbox_->mutex);
    mailbox_->is_closed = true;
    answers.swap(mailbox_->answers);
  }
  for (auto& [key, answer] : answers) (void)answer(nullptr);
  while (!connections_.empty()) Close(connections_.begin()->first);
}

void MemorySocketServer::Recheck() {
  {
    absl::MutexLock lock(&mailbox_->mutex);
    mailbox_->is_recheck_due = true;
  }
  loop_.Wake();
}

MemorySocketServer::Counters MemorySocketServer::counters() const {
  absl::MutexLock lock(&mutex_);
  return counters_;
}

void MemorySocketServer::OnTurnEnd() {
  DrainMailbox();
  DropSilent();
  counted_.connections = connections_.size();
  absl::MutexLock lock(&mutex_);
  counters_ = counted_;
}

absl::Time MemorySocketServer::NextTurnBy() const {
  absl::Time next = absl::InfiniteFuture();
  if (silent_connections_ == 0) return next;
  for (const auto& [key, connection] : connections_) next = std::min(next, connection.hello_by);
  return next;
}

void MemorySocketServer::OnAccepted(UniqueFd fd, bool /*is_unix*/) {
  ++counted_.accepted;
  ucred peer{};
  socklen_t length = sizeof peer;
  if (getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return;
  std::optional<Caller> caller = parts_.access.Now()->CallerOf(peer.uid);
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
    (void)SendReply(fd.get(), MemoryReply{.code = MemoryReplyCode::kTooManySessions});
    return;
  }
  const size_t packet_bytes_max = GrowSendBuffer(fd.get());
  const uint64_t key = next_key_++;
  if (!loop_.Watch(fd.get(), key, EPOLLIN | EPOLLRDHUP)) {
    if (of_uid == 0) connections_by_uid_.erase(peer.uid);
    return;
  }
  ++of_uid;
  ++silent_connections_;
  connections_.emplace(key, Connection{.fd = std::move(fd),
                                       .caller = *std::move(caller),
                                       .hello_by = parts_.clock.Now() + options_.handshake_time,
                                       .packet_bytes_max = packet_bytes_max,
                                       .token = std::nullopt,
                                       .session = {},
                                       .tenant = {},
                                       .access = MemoryAccess::kReadOnly});
}

void MemorySocketServer::OnReady(uint64_t key, uint32_t events) {
  auto it = connections_.find(key);
  if (it == connections_.end()) return;
  // A hang-up ends the session at once, also while the core works for it.
  if ((events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR)) != 0) return Close(key);
  if (!it->second.is_waiting_for_core) {
    if (OnPacket(key, it->second) == Outcome::kClose) Close(key);
    return;
  }
  // Level-triggered: what the client has sent meanwhile would wake us without end.
  loop_.Change(it->second.fd.get(), key, EPOLLRDHUP);
  it->second.is_muted = true;
}

MemorySocketServer::Outcome MemorySocketServer::OnPacket(uint64_t key, Connection& connection) {
  // MSG_TRUNC: the packet's real length. No control buffer: the kernel drops descriptors that a
  // client sends.
  const ssize_t got =
      recv(connection.fd.get(), packet_.data(), packet_.size(), MSG_DONTWAIT | MSG_TRUNC);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return Outcome::kKeep;
  if (got <= 0) return Outcome::kClose;
  struct {
    uint32_t version;
    MemoryRequestKind kind;
  } head;
  if (got < static_cast<ssize_t>(sizeof head) || got > static_cast<ssize_t>(packet_.size()))
    return OnMalformed(connection);
  std::memcpy(&head, packet_.data(), sizeof head);
  if (head.version != kMemorySocketVersion) {
    (void)SendReply(connection.fd.get(), MemoryReply{.code = MemoryReplyCode::kVersionMismatch});
    return Outcome::kClose;
  }
  const std::span<const std::byte> packet(packet_.data(), static_cast<size_t>(got));
  if (connection.token.has_value()) {
    if (head.kind == MemoryRequestKind::kAcquire) return OnAcquire(key, connection, packet);
    const auto release = MessageOf<MemoryRelease>(packet);
    if (head.kind == MemoryRequestKind::kRelease && release.has_value())
      return OnRelease(key, connection, *release);
  }
  const auto request = MessageOf<MemoryRequest>(packet);
  if (request.has_value() && request->reserved == 0) {
    if (head.kind == MemoryRequestKind::kHello && !connection.token.has_value())
      return OnHello(key, connection, *request);
    if (head.kind == MemoryRequestKind::kMapSlab && connection.token.has_value())
      return OnMapSlab(key, connection, *request);
  }
  return OnMalformed(connection);
}

MemorySocketServer::Outcome MemorySocketServer::OnMalformed(Connection& connection) {
  ++counted_.malformed;
  (void)SendReply(connection.fd.get(), MemoryReply{.code = MemoryReplyCode::kMalformed});
  return Outcome::kClose;
}

MemorySocketServer::Outcome MemorySocketServer::OnHello(uint64_t key, Connection& connection,
                                                        const MemoryRequest& request) {
  std::optional<std::string> named = FieldText(request.tenant);
  if (!named.has_value() || !IsAccess(request.access)) return OnMalformed(connection);
  absl::StatusOr<std::string> tenant = connection.caller.TenantFor(*named);
  if (!tenant.ok()) {
    (void)SendReply(connection.fd.get(), MemoryReply{.code = MemoryReplyCode::kNotAllowed});
    return Outcome::kClose;
  }
  connection.tenant = *std::move(tenant);
  connection.access = request.access;
  connection.is_waiting_for_core = true;
  connection.hello_by = absl::InfiniteFuture();
  --silent_connections_;
  parts_.core.Post([this, mailbox = mailbox_, &store = parts_.store, &core = parts_.core, key,
                    tenant_name = connection.tenant] {
    absl::StatusOr<SessionId> session = store.OpenSession(tenant_name);
    mailbox->Put(key, [this, &store, &core, session](Connection* opened) {
      if (opened != nullptr) return FinishOpen(*opened, session);
      if (session.ok()) core.Post([&store, id = *session] { store.CloseSession(id); });
      return Outcome::kClose;
    });
  });
  return Outcome::kKeep;
}

MemorySocketServer::Outcome MemorySocketServer::OnMapSlab(uint64_t key, Connection& connection,
                                                          const MemoryRequest& request) {
  if (request.tier >= tiers::kNumTierKinds) {
    return SendReply(connection.fd.get(), MemoryReply{.code = MemoryReplyCode::kNoSuchSlab}) ==
                   SendResult::kSent
               ? Outcome::kKeep
               : Outcome::kClose;
  }
  connection.is_waiting_for_core = true;
  parts_.core.Post([this, mailbox = mailbox_, exporter = exporter_, key, request,
                    tenant = connection.tenant, access = connection.access] {
    absl::StatusOr<ExportedSlab> slab =
        exporter(static_cast<tiers::TierKind>(request.tier), request.slab, tenant, access);
    mailbox->Put(key, [this, slab = std::move(slab)](Connection* mapped) {
      return mapped == nullptr ? Outcome::kClose : FinishMap(*mapped, slab);
    });
  });
  return Outcome::kKeep;
}

// Of a connection that goes meanwhile the lease ends with its session.
MemorySocketServer::Outcome MemorySocketServer::OnAcquire(uint64_t key, Connection& connection,
                                                          std::span<const std::byte> packet) {
  std::optional<AcquirePacket> request = DecodeAcquireRequest(packet);
  if (!request.has_value()) return OnMalformed(connection);
  // An operation in flight like any other of its tenant; gRPC says what bound is reached.
  absl::StatusOr<CallGate::Ticket> ticket = parts_.gate.Admit(connection.tenant, packet.size());
  const bool fits = ticket.ok() && sizeof(AcquireReplyHeader) +
                                           request->hashes.size() * kAcquireReplyBytesPerBlock <=
                                       connection.packet_bytes_max;
  connection.is_waiting_for_core =
      fits &&
      parts_.core_queue.TryPost(
          connection.tenant, packet.size(),
          [this, entered = parts_.clock.Now(), mailbox = mailbox_, &store = parts_.store, key,
           session = connection.session, tenant = connection.tenant,
           salt = parts_.access.Now()->SaltOf(connection.tenant), request = *std::move(request),
           ticket = *std::move(ticket)]() mutable {
            mailbox->Put(key, [this, entered, ticket = std::move(ticket),
                               reply = AcquireInPlace(store, session, tenant, salt, request)](
                                  Connection* asking) {
              if (asking == nullptr) return Outcome::kClose;
              if (reply.code == MemoryReplyCode::kOk) {
                parts_.times.Record(Operation::kAcquire, absl::StatusCode::kOk,
                                    parts_.clock.Now() - entered);
              }
              return SendPacket(asking->fd.get(), EncodeAcquireReply(reply)) == SendResult::kSent
                         ? Outcome::kKeep
                         : Outcome::kClose;
            });
          });
  if (connection.is_waiting_for_core) return Outcome::kKeep;
  const AcquireReply refusal{.code = MemoryReplyCode::kUseCall, .lease = 0, .blocks = {}};
  return SendPacket(connection.fd.get(), EncodeAcquireReply(refusal)) == SendResult::kSent
             ? Outcome::kKeep
             : Outcome::kClose;
}

// Only a client that releases faster than the core does is made to wait.
MemorySocketServer::Outcome MemorySocketServer::OnRelease(uint64_t key, Connection& connection,
                                                          const MemoryRelease& request) {
  const auto& in_flight = connection.releases_in_flight;
  connection.is_waiting_for_core =
      in_flight->fetch_add(1, std::memory_order_relaxed) + 1 >= kReleasesInFlightMax;
  parts_.core.Post([mailbox = mailbox_, &store = parts_.store, key, session = connection.session,
                    lease = LeaseId(request.lease), in_flight,
                    must_answer = connection.is_waiting_for_core] {
    store.Release(session, lease, {}).IgnoreError();  // it may have expired
    in_flight->fetch_sub(1, std::memory_order_relaxed);
    if (must_answer) mailbox->Put(key, [](Connection*) { return Outcome::kKeep; });
  });
  return Outcome::kKeep;
}

void MemorySocketServer::DrainMailbox() {
  std::vector<std::pair<uint64_t, Answer>> answers;
  bool is_recheck_due = false;
  {
    absl::MutexLock lock(&mailbox_->mutex);
    is_recheck_due = std::exchange(mailbox_->is_recheck_due, false);
    answers.swap(mailbox_->answers);
  }
  for (auto& [key, answer] : answers) {
    auto it = connections_.find(key);
    if (it == connections_.end()) {
      (void)answer(nullptr);  // hung up meanwhile
      continue;
    }
    if (answer(&it->second) == Outcome::kClose) {
      Close(key);
      continue;
    }
    it->second.is_waiting_for_core = false;
    if (std::exchange(it->second.is_muted, false))
      loop_.Change(it->second.fd.get(), key, EPOLLIN | EPOLLRDHUP);
  }
  if (is_recheck_due) DropUnlisted();
}

void MemorySocketServer::DropUnlisted() {
  const std::shared_ptr<const AccessList> access = parts_.access.Now();
  std::vector<uint64_t> unlisted;
  for (const auto& [key, connection] : connections_) {
    if (access->CallerOf(*connection.caller.uid) != connection.caller) unlisted.push_back(key);
  }
  for (uint64_t key : unlisted) Close(key);
}

MemorySocketServer::Outcome MemorySocketServer::FinishOpen(
    Connection& connection, const absl::StatusOr<SessionId>& session) {
  if (!session.ok()) {
    (void)SendReply(connection.fd.get(), MemoryReply{.code = MemoryReplyCode::kTooManySessions});
    return Outcome::kClose;
  }
  connection.session = *session;
  absl::StatusOr<SessionToken> token =
      parts_.sessions.Add({.id = *session,
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
  return SendReply(connection.fd.get(), reply) == SendResult::kSent ? Outcome::kKeep
                                                                    : Outcome::kClose;
}

MemorySocketServer::Outcome MemorySocketServer::FinishMap(
    Connection& connection, const absl::StatusOr<ExportedSlab>& slab) {
  if (!slab.ok()) {
    const MemoryReply reply{.code = MemoryReplyCode::kNoSuchSlab};
    return SendReply(connection.fd.get(), reply) == SendResult::kSent ? Outcome::kKeep
                                                                      : Outcome::kClose;
  }
  const std::array<int, 2> descriptors = {slab->slab.get(), slab->generations.get()};
  const MemoryReply reply{.code = MemoryReplyCode::kOk, .slab_bytes = slab->slab_bytes};
  return SendReply(connection.fd.get(), reply, descriptors) == SendResult::kSent ? Outcome::kKeep
                                                                                 : Outcome::kClose;
}

void MemorySocketServer::CloseSession(SessionId session) {
  parts_.core.Post([&store = parts_.store, session] { store.CloseSession(session); });
}

void MemorySocketServer::Close(uint64_t key) {
  auto it = connections_.find(key);
  Connection& connection = it->second;
  if (connection.hello_by != absl::InfiniteFuture()) --silent_connections_;
  if (connection.token.has_value()) {
    parts_.sessions.Remove(*connection.token);
    CloseSession(connection.session);
  }
  auto of_uid = connections_by_uid_.find(connection.caller.uid.value_or(0));
  if (--of_uid->second == 0) connections_by_uid_.erase(of_uid);
  connections_.erase(it);
}

void MemorySocketServer::DropSilent() {
  if (silent_connections_ == 0) return;
  const absl::Time now = parts_.clock.Now();
  std::vector<uint64_t> silent;
  for (const auto& [key, connection] : connections_) {
    if (connection.hello_by <= now) silent.push_back(key);
  }
  for (uint64_t key : silent) Close(key);
}

}  // namespace kvstore::service
