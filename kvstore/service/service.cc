#include "kvstore/service/service.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server_posix.h>

#include <atomic>
#include <chrono>
#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/service/admin_service.h"
#include "kvstore/service/call_times.h"
#include "kvstore/service/edge_pool.h"
#include "kvstore/service/kvstore_service.h"
#include "kvstore/service/translate.h"

namespace kvstore::service {
namespace {

constexpr int kStreamsPerConnectionMax = 256;
constexpr int kHeaderBytesMax = 8 << 10;
constexpr int kKeepaliveMs = 20'000;         // a peer that does not answer a ping ...
constexpr int kKeepaliveTimeoutMs = 10'000;  // ... for this long is gone
constexpr int kPingIntervalMinMs = 5'000;    // clients that ping more often are told to go away
// A request of 8,192 hashes in one flight: the default window of 64 KiB makes an Acquire of 2,048
// blocks wait for the other side twice.
constexpr int kWindowBytes = 512 << 10;
constexpr int kFrameBytes = 256 << 10;
constexpr int kReadChunkBytes = 64 << 10;
constexpr size_t kGrpcMemoryBytes = size_t{256} << 20;
constexpr int kReflectionThreadsMax =
    8;  // its streams take a thread each, on all servers together 4 a server

// One identity and what it may talk to.
struct IdentityServer {
  IdentityServer(const CallParts& parts, const DaemonFacts& facts, const Caller& who)
      : caller(who), data(parts, who), admin(parts, facts, who) {}
  const Caller caller;
  KvStoreService data;
  AdminService admin;
  std::unique_ptr<grpc::Server> server;
};

void RegisterGlobalPlugins() {
  static const bool is_done = [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    return true;
  }();
  (void)is_done;
}

absl::Status StartServer(IdentityServer* identity, const grpc::ResourceQuota& quota) {
  grpc::ServerBuilder builder;
  builder.RegisterService(&identity->data);
  builder.RegisterService(&identity->admin);
  builder.SetMaxReceiveMessageSize(kMessageBytesMax);
  builder.SetMaxSendMessageSize(kMessageBytesMax);
  builder.SetResourceQuota(quota);
  // Reflection is gRPC's own synchronous service: few threads, and none that wakes without work.
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 1);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kStreamsPerConnectionMax);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kWindowBytes);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, kFrameBytes);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  builder.AddChannelArgument(GRPC_ARG_TCP_READ_CHUNK_SIZE, kReadChunkBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kHeaderBytesMax);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kPingIntervalMinMs);
  identity->server = builder.BuildAndStart();
  if (identity->server == nullptr) return absl::InternalError("gRPC server did not start");
  return absl::OkStatus();
}

// Listeners of both kinds, bound.
struct Listeners {
  std::vector<SocketPathLock> locks;
  std::vector<ListeningSocket> streams;
  std::vector<ListeningSocket> memory;
  bool has_tcp = false;
};

absl::StatusOr<Listeners> BindAll(const std::vector<std::string>& addresses,
                                  SocketAudience audience) {
  Listeners bound;
  for (const std::string& address : addresses) {
    if (address.starts_with("tcp:")) {
      ASSIGN_OR_RETURN(ListeningSocket socket, ListeningSocket::BindTcp(address.substr(4)));
      bound.streams.push_back(std::move(socket));
      bound.has_tcp = true;
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

}  // namespace

struct Service::State {
  State(const ServiceOptions& o, store::Store& store, Executor& core, DaemonFacts f,
        const Clock& clock)
      : options(o),
        gate(o.calls),
        edges(o.edge_threads, clock),
        facts(std::move(f)),
        parts{.store = store,
              .core = core,
              .edges = edges,
              .gate = gate,
              .sessions = sessions,
              .times = times,
              .clock = clock,
              .call_deadline = o.call_deadline,
              .bulk_deadline = o.bulk_deadline,
              .lease_time = o.lease_time},
        access(o.own_uid, o.allow_uids) {}

  void FillFacts();
  void SetDraining(bool is_draining) ABSL_LOCKS_EXCLUDED(health_mutex);
  absl::Status StartServers(bool has_tcp);
  void HandOver(UniqueFd connection, const Caller& caller);
  grpc::Server* ServerOf(const Caller& caller);

  const ServiceOptions options;
  CallGate gate;
  SessionTable sessions;
  CallTimes times;
  EdgePool edges;
  DaemonFacts facts;
  const CallParts parts;
  const AccessList access;
  std::atomic<bool> is_stopping{false};
  absl::Mutex health_mutex;  // gRPC's health services change together
  bool is_stopped = false;
  std::vector<std::unique_ptr<IdentityServer>> identities;
  std::vector<SocketPathLock> locks;  // let go after the sockets are removed
  std::unique_ptr<MemorySocketServer> memory;
  std::unique_ptr<ConnectionDoor> door;
};

void Service::State::FillFacts() {
  facts.is_stopping = [this] { return is_stopping.load(std::memory_order_relaxed); };
  facts.set_draining = [this](bool is_draining) { SetDraining(is_draining); };
  facts.counters = [this] {
    const ConnectionDoor::Counters d = door->counters();
    const MemorySocketServer::Counters m = memory->counters();
    const CallGate::Counters g = gate.counters();
    return std::vector<std::pair<std::string, uint64_t>>{
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
  };
}

void Service::State::SetDraining(bool is_draining) {
  absl::MutexLock lock(&health_mutex);
  const bool is_serving = !is_draining && !is_stopping.load(std::memory_order_relaxed);
  for (const auto& identity : identities) {
    if (auto* health = identity->server->GetHealthCheckService())
      health->SetServingStatus(is_serving);
  }
}

absl::Status Service::State::StartServers(bool has_tcp) {
  RegisterGlobalPlugins();
  std::vector<Caller> callers = {*access.CallerOf(options.own_uid)};
  for (uid_t uid : options.allow_uids) {
    Caller caller = *access.CallerOf(uid);
    if (!caller.is_admin()) callers.push_back(std::move(caller));
  }
  if (has_tcp) callers.push_back(AccessList::LoopbackCaller());
  grpc::ResourceQuota quota("kvstored");
  quota.Resize(kGrpcMemoryBytes);
  quota.SetMaxThreads(static_cast<int>(callers.size()) * 2 + kReflectionThreadsMax);
  for (const Caller& caller : callers) {
    identities.push_back(std::make_unique<IdentityServer>(parts, facts, caller));
    RETURN_IF_ERROR(StartServer(identities.back().get(), quota));
  }
  return absl::OkStatus();
}

grpc::Server* Service::State::ServerOf(const Caller& caller) {
  for (const auto& identity : identities) {
    const bool is_same =
        caller.is_admin() ? identity->caller.is_admin() : identity->caller.uid == caller.uid;
    if (is_same) return identity->server.get();
  }
  return nullptr;
}

void Service::State::HandOver(UniqueFd connection, const Caller& caller) {
  // Every caller that the door lets in has a server; without one the connection is closed.
  if (grpc::Server* server = ServerOf(caller))
    grpc::AddInsecureChannelFromFd(server, connection.Take());
}

Service::Service(std::unique_ptr<State> state) : state_(std::move(state)) {}
Service::~Service() { Stop(absl::ZeroDuration()); }

absl::StatusOr<std::unique_ptr<Service>> Service::Create(const ServiceOptions& options,
                                                         store::Store& store, Executor& core,
                                                         SlabExporter exporter, DaemonFacts facts,
                                                         const Clock& clock) {
  const SocketAudience audience =
      options.allow_uids.empty() ? SocketAudience::kOwnerOnly : SocketAudience::kGroup;
  ASSIGN_OR_RETURN(Listeners bound, BindAll(options.listen, audience));
  auto state = std::make_unique<State>(options, store, core, std::move(facts), clock);
  State* raw = state.get();
  raw->locks = std::move(bound.locks);
  raw->memory = std::make_unique<MemorySocketServer>(
      MemorySocketServer::Options{.connections_max = options.sessions_max,
                                  .connections_per_uid_max = options.sessions_max,
                                  .handshake_time = options.handshake_time,
                                  .incarnation = raw->facts.incarnation},
      raw->access, store, core, raw->sessions, std::move(exporter), clock);
  raw->door = std::make_unique<ConnectionDoor>(
      ConnectionDoor::Options{.connections_max = options.connections_max,
                              .connections_per_uid_max = options.connections_per_uid_max,
                              .handshake_time = options.handshake_time},
      raw->access, clock,
      [raw](UniqueFd fd, const Caller& caller) { raw->HandOver(std::move(fd), caller); });
  for (ListeningSocket& socket : bound.memory) raw->memory->AddListener(std::move(socket));
  for (ListeningSocket& socket : bound.streams) raw->door->AddListener(std::move(socket));
  raw->FillFacts();
  RETURN_IF_ERROR(raw->StartServers(bound.has_tcp));
  return std::unique_ptr<Service>(new Service(std::move(state)));
}

absl::Status Service::Start() {
  RETURN_IF_ERROR(state_->memory->Start());
  return state_->door->Start();
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
  const auto deadline = std::chrono::system_clock::now() + absl::ToChronoMilliseconds(grace);
  for (const auto& identity : state_->identities) {
    if (identity->server != nullptr) identity->server->Shutdown(deadline);
  }
  state_->memory->Stop();
  state_->edges.Stop();
}

}  // namespace kvstore::service
