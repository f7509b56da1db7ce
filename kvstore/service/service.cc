#include "kvstore/service/service.h"

#include <atomic>
#include <chrono>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/base/log.h"
#include "kvstore/base/memory_socket.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/thread_preference.h"
#include "kvstore/service/access_list.h"
#include "kvstore/service/admin_service.h"
#include "kvstore/service/call_times.h"
#include "kvstore/service/edge_pool.h"
#include "kvstore/service/grpc_server.h"
#include "kvstore/service/identity_servers.h"
#include "kvstore/service/tls_door.h"
#include "kvstore/service/tls_pump.h"

namespace kvstore::service {
namespace {

constexpr size_t kGrpcMemoryBytes = size_t{256} << 20;
constexpr size_t kAdminConnectionsMax = 64;

// All listeners, bound.
struct Listeners {
  std::vector<SocketPathLock> locks;
  std::vector<ListeningSocket> streams;
  std::vector<ListeningSocket> memory;
  std::vector<ListeningSocket> admin;
  std::vector<ListeningSocket> tls;
  bool has_plain_tcp = false;
};

absl::StatusOr<Listeners> BindData(const ServiceOptions& options, SocketAudience audience) {
  Listeners bound;
  for (const std::string& address : options.listen) {
    if (address.starts_with("tcp:")) {
      const TcpReach reach = options.tls == nullptr ? TcpReach::kLoopback : TcpReach::kAnywhere;
      ASSIGN_OR_RETURN(ListeningSocket socket, ListeningSocket::BindTcp(address.substr(4), reach));
      (options.tls == nullptr ? bound.streams : bound.tls).push_back(std::move(socket));
      bound.has_plain_tcp |= options.tls == nullptr;
      continue;
    }
    if (!address.starts_with("unix:"))
      return absl::InvalidArgumentError(
          absl::StrCat(address, ": neither unix:PATH nor tcp:HOST:PORT"));
    const std::string path = address.substr(5);
    ASSIGN_OR_RETURN(SocketPathLock lock, SocketPathLock::Take(path, audience));
    // The memory socket first: clients take the other one as the sign that the daemon is there.
    ASSIGN_OR_RETURN(ListeningSocket memory,
                     ListeningSocket::BindUnix(path + kMemorySocketSuffix, SocketType::kSeqPacket,
                                               audience, lock));
    ASSIGN_OR_RETURN(ListeningSocket stream,
                     ListeningSocket::BindUnix(path, SocketType::kStream, audience, lock));
    bound.locks.push_back(std::move(lock));
    bound.memory.push_back(std::move(memory));
    bound.streams.push_back(std::move(stream));
  }
  return bound;
}

// Ours alone, whoever may reach the other sockets.
absl::Status BindAdmin(const ServiceOptions& options, Listeners* bound) {
  if (!options.admin.empty()) {
    const std::string path = options.admin.substr(5);
    ASSIGN_OR_RETURN(SocketPathLock lock, SocketPathLock::Take(path, SocketAudience::kOwnerOnly));
    ASSIGN_OR_RETURN(
        ListeningSocket socket,
        ListeningSocket::BindUnix(path, SocketType::kStream, SocketAudience::kOwnerOnly, lock));
    bound->locks.push_back(std::move(lock));
    bound->admin.push_back(std::move(socket));
    return absl::OkStatus();
  }
  size_t unix_listeners = 0;
  for (const std::string& address : options.listen) {
    if (!address.starts_with("unix:")) continue;
    // The lock on the listener's path covers this one too.
    ASSIGN_OR_RETURN(
        ListeningSocket socket,
        ListeningSocket::BindUnix(address.substr(5) + kAdminSocketSuffix, SocketType::kStream,
                                  SocketAudience::kOwnerOnly, bound->locks[unix_listeners++]));
    bound->admin.push_back(std::move(socket));
  }
  return absl::OkStatus();
}

AccessList AccessOf(const ServiceOptions& options) {
  return options.tenants.has_value() ? AccessList(options.own_uid, *options.tenants)
                                     : AccessList(options.own_uid, options.allow_uids);
}

}  // namespace

struct Service::State {
  State(const ServiceOptions& o, store::Store& store, Executor& c, DaemonFacts f,
        const Clock& clock)
      : options(o),
        gate(o.calls),
        core_queue(c, o.core_queue),
        edges(o.edge_threads, clock),
        facts(std::move(f)),
        access(AccessOf(o)),
        admin_access(AccessList(o.own_uid, std::vector<uid_t>())),
        parts{.store = store,
              .core = c,
              .core_queue = core_queue,
              .edges = edges,
              .gate = gate,
              .sessions = sessions,
              .access = access,
              .times = times,
              .clock = clock,
              .call_deadline = o.call_deadline,
              .bulk_deadline = o.bulk_deadline,
              .lease_time = o.lease_time},
        admin(parts, facts, *admin_access.Now()->CallerOf(o.own_uid)),
        quota("kvstored"),
        identities(parts, quota) {
    quota.Resize(kGrpcMemoryBytes);
  }

  void FillFacts();
  void MakeDoors(SlabExporter exporter, const Clock& clock);
  void TakeListeners(Listeners bound);
  std::vector<Caller> Callers() const;
  void SetDraining(bool is_draining) ABSL_LOCKS_EXCLUDED(health_mutex);
  void ApplyQuotas(const std::vector<TenantRule>& tenants);

  const ServiceOptions options;
  CallGate gate;
  CoreQueue core_queue;
  SessionTable sessions;
  CallTimes times;
  EdgePool edges;
  DaemonFacts facts;
  AccessTable access;
  const AccessTable admin_access;  // nobody but the owners
  const CallParts parts;
  AdminService admin;
  std::atomic<bool> is_stopping{false};
  absl::Mutex health_mutex;  // gRPC's health services change together
  bool is_stopped = false;
  bool has_plain_tcp = false;
  grpc::ResourceQuota quota;
  IdentityServers identities;
  std::unique_ptr<grpc::Server> admin_server;
  std::vector<SocketPathLock> locks;  // let go after the sockets are removed
  std::unique_ptr<MemorySocketServer> memory;
  std::unique_ptr<ConnectionDoor> door;
  // A door of its own: floods at the other one cannot keep the operator out.
  std::unique_ptr<ConnectionDoor> admin_door;
  std::unique_ptr<TlsPump> tls_pump;  // null without TLS; before the door, which passes on to it
  std::unique_ptr<TlsDoor> tls_door;
};

void Service::State::MakeDoors(SlabExporter exporter, const Clock& clock) {
  const auto hand_over = [this](UniqueFd fd, const Caller& caller) {
    identities.HandOver(std::move(fd), caller);
  };
  memory = std::make_unique<MemorySocketServer>(
      MemorySocketServer::Options{.connections_max = options.sessions_max,
                                  .connections_per_uid_max = options.sessions_max,
                                  .handshake_time = options.handshake_time,
                                  .incarnation = facts.incarnation},
      parts, std::move(exporter));
  door = std::make_unique<ConnectionDoor>(
      ConnectionDoor::Options{.connections_max = options.connections_max,
                              .connections_per_uid_max = options.connections_per_uid_max,
                              .handshake_time = options.handshake_time},
      access, clock, hand_over);
  admin_door = std::make_unique<ConnectionDoor>(
      ConnectionDoor::Options{.thread_name = "kv-admin",
                              .connections_max = kAdminConnectionsMax,
                              .connections_per_uid_max = kAdminConnectionsMax,
                              .handshake_time = options.handshake_time},
      admin_access, clock,
      [this](UniqueFd fd, const Caller&) { AddConnection(*admin_server, std::move(fd)); });
  if (options.tls == nullptr) return;
  tls_pump = std::make_unique<TlsPump>(
      TlsPump::Options{.connections_max = options.connections_max,
                       .connections_per_tenant_max = options.connections_per_uid_max},
      access, options.tls, clock, hand_over);
  tls_door = std::make_unique<TlsDoor>(TlsDoor::Options{.handshake_time = options.handshake_time},
                                       options.tls, clock,
                                       [this](TlsPeer peer) { tls_pump->Add(std::move(peer)); });
}

void Service::State::TakeListeners(Listeners bound) {
  locks = std::move(bound.locks);
  has_plain_tcp = bound.has_plain_tcp;
  for (ListeningSocket& socket : bound.memory) memory->AddListener(std::move(socket));
  for (ListeningSocket& socket : bound.streams) door->AddListener(std::move(socket));
  for (ListeningSocket& socket : bound.admin) admin_door->AddListener(std::move(socket));
  for (ListeningSocket& socket : bound.tls) tls_door->AddListener(std::move(socket));
}

std::vector<Caller> Service::State::Callers() const {
  std::vector<Caller> callers = access.Now()->Callers();
  if (has_plain_tcp) callers.push_back(AccessList::LoopbackCaller());
  return callers;
}

// Quotas that the file does not name stay as an operator set them.
void Service::State::ApplyQuotas(const std::vector<TenantRule>& tenants) {
  for (const TenantRule& rule : tenants)
    gate.SetCallsMax(rule.name, rule.operations_max.value_or(0));
  parts.core.Post([&store = parts.store, tenants] {
    for (const TenantRule& rule : tenants) {
      for (size_t tier = 0; tier < rule.quota_bytes.size(); ++tier) {
        if (!rule.quota_bytes[tier].has_value()) continue;
        store.SetQuota(rule.name, static_cast<tiers::TierKind>(tier), *rule.quota_bytes[tier],
                       store::QuotaLife::kThisRun, [name = rule.name](absl::Status status) {
                         if (status.ok()) return;
                         Log(LogLevel::kWarning, "a quota of the tenants file does not hold",
                             {{"tenant", name}, {"status", status}});
                       });
      }
    }
  });
}

void Service::State::FillFacts() {
  facts.is_stopping = [this] { return is_stopping.load(std::memory_order_relaxed); };
  facts.set_draining = [this](bool is_draining) { SetDraining(is_draining); };
  facts.counters = [this] {
    const ConnectionDoor::Counters d = door->counters();
    const MemorySocketServer::Counters m = memory->counters();
    const CallGate::Counters g = gate.counters();
    std::vector<std::pair<std::string, uint64_t>> rows = {
        {"connections", d.connections},
        {"connections_accepted", d.accepted},
        {"connections_refused_uid", d.refused_uid},
        {"connections_refused_cap", d.refused_cap},
        {"connections_refused_fds", d.refused_fds},
        {"connections_refused_handshake", d.refused_handshake},
        {"memory_connections", m.connections},
        {"memory_refused", m.refused},
        {"memory_malformed", m.malformed},
        {"calls_in_progress", g.calls},
        {"calls_refused", g.refused_calls}};
    if (tls_door == nullptr) return rows;
    const TlsDoor::Counters t = tls_door->counters();
    const TlsPump::Counters p = tls_pump->counters();
    rows.insert(rows.end(), {{"tls_connections", p.connections},
                             {"tls_accepted", t.accepted},
                             {"tls_handshakes", t.handshakes},
                             {"tls_refused_handshake", t.refused_handshake},
                             {"tls_refused_fds", t.refused_fds},
                             {"tls_refused_name", p.refused_name},
                             {"tls_refused_cap", p.refused_cap},
                             {"tls_ended_by_reload", p.ended_by_reload}});
    return rows;
  };
}

void Service::State::SetDraining(bool is_draining) {
  absl::MutexLock lock(&health_mutex);
  const bool is_serving = !is_draining && !is_stopping.load(std::memory_order_relaxed);
  identities.SetServing(is_serving);
  SetServing(*admin_server, is_serving);
}

Service::Service(std::unique_ptr<State> state) : state_(std::move(state)) {}
Service::~Service() { Stop(absl::ZeroDuration()); }

absl::StatusOr<std::unique_ptr<Service>> Service::Create(const ServiceOptions& options,
                                                         store::Store& store, Executor& core,
                                                         SlabExporter exporter, DaemonFacts facts,
                                                         const Clock& clock) {
  std::unique_ptr<State> state;
  RunGivingWay([&] {
    // Edge threads, and those that gRPC starts when it is first used.
    state = std::make_unique<State>(options, store, core, std::move(facts), clock);
  });
  State* raw = state.get();
  const SocketAudience audience =
      raw->access.Now()->allows_others() ? SocketAudience::kGroup : SocketAudience::kOwnerOnly;
  ASSIGN_OR_RETURN(Listeners bound, BindData(options, audience));
  RETURN_IF_ERROR(BindAdmin(options, &bound));
  raw->MakeDoors(std::move(exporter), clock);
  raw->TakeListeners(std::move(bound));
  raw->FillFacts();
  raw->ApplyQuotas(options.tenants.value_or(std::vector<TenantRule>()));
  RETURN_IF_ERROR(raw->identities.Update(raw->Callers()));
  ASSIGN_OR_RETURN(raw->admin_server, StartGrpcServer({&raw->admin}, raw->quota));
  return std::unique_ptr<Service>(new Service(std::move(state)));
}

absl::Status Service::Start() {
  RETURN_IF_ERROR(state_->memory->Start());
  // Before the others: who can connect can also be looked at.
  RETURN_IF_ERROR(state_->admin_door->Start());
  if (state_->tls_door != nullptr) {
    RETURN_IF_ERROR(state_->tls_pump->Start());
    RETURN_IF_ERROR(state_->tls_door->Start());
  }
  return state_->door->Start();
}

absl::Status Service::ReloadTenants(std::vector<TenantRule> tenants) {
  State& state = *state_;
  // The list first: nobody comes in by the old one while servers are being ended. Whom a door has
  // in hand under the old list finds no server.
  const std::shared_ptr<const AccessList> before = state.access.Now();
  state.access.Set(AccessList(state.options.own_uid, tenants));
  if (absl::Status updated = state.identities.Update(state.Callers()); !updated.ok()) {
    state.access.Set(*before);
    return updated;
  }
  state.memory->Recheck();
  if (state.tls_pump != nullptr) state.tls_pump->Recheck();
  state.ApplyQuotas(tenants);
  return absl::OkStatus();
}

void Service::ReloadTls(std::shared_ptr<const TlsContext> tls) {
  state_->tls_door->SetContext(tls);
  state_->tls_pump->SetContext(std::move(tls));
  state_->tls_pump->Recheck();
}

void Service::SetStopping() {
  state_->is_stopping.store(true, std::memory_order_relaxed);
  state_->SetDraining(true);
}

std::vector<CallRow> Service::calls() const { return state_->times.Rows(); }
std::vector<std::pair<std::string, uint64_t>> Service::counters() const {
  return state_->facts.counters();
}

void Service::Stop(absl::Duration grace) {
  if (state_->is_stopped) return;
  state_->is_stopped = true;
  state_->door->Stop();
  state_->admin_door->Stop();
  if (state_->tls_door != nullptr) state_->tls_door->Stop();
  const auto deadline = std::chrono::system_clock::now() + absl::ToChronoMilliseconds(grace);
  state_->identities.Shutdown(deadline);
  if (state_->admin_server != nullptr) state_->admin_server->Shutdown(deadline);
  // After the servers: what they answered within their grace is on its way through it.
  if (state_->tls_pump != nullptr) state_->tls_pump->Stop();
  state_->memory->Stop();
  state_->edges.Stop();
}

}  // namespace kvstore::service
