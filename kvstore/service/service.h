// The daemon's whole network side: listeners, the doors, a gRPC server for each identity, the admin
// server on a socket of its own, edge threads.
//
// Start-up order: Create() binds and locks the socket paths, Start() lets clients in. Shut-down:
// SetStopping(), then Stop(), then the core and the store may go, then this object (closures on the
// core refer to it).
//
// Threads: thread-safe.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "kvstore/service/call_gate.h"
#include "kvstore/service/call_times.h"
#include "kvstore/service/connection_door.h"
#include "kvstore/service/daemon_facts.h"
#include "kvstore/service/memory_socket_server.h"
#include "kvstore/service/tenants.h"
#include "kvstore/service/tls_context.h"
#include "kvstore/store/store.h"

namespace kvstore::service {

struct ServiceOptions {
  std::vector<std::string> listen;  // unix:PATH, tcp:HOST:PORT
  // unix:PATH of the admin socket; empty: PATH.admin beside each unix listener.
  std::string admin;
  uid_t own_uid = 0;
  std::vector<uid_t> allow_uids;
  // Instead of allow_uids: who the tenants file lists.
  std::optional<std::vector<TenantRule>> tenants;
  // Of the tcp listeners; null: none, and they must be on loopback.
  std::shared_ptr<const TlsContext> tls;
  size_t sessions_max = 1024;
  absl::Duration call_deadline = absl::Seconds(2);
  absl::Duration bulk_deadline = absl::Seconds(60);
  absl::Duration lease_time = absl::Seconds(30);
  absl::Duration handshake_time = absl::Seconds(5);
  CallGate::Limits calls;
  size_t core_queue = 4096;  // calls that wait for the core
  size_t connections_max = 512;
  size_t connections_per_uid_max = 256;
  size_t edge_threads = 2;
};

class Service {
 public:
  // `store`, `core` and `clock` outlive the service. `facts.counters`, `facts.is_stopping` and
  // `facts.set_draining` are filled in here. Errors: AlreadyExists, a socket is in use;
  // InvalidArgument, an address; FailedPrecondition, an unsafe path; errno's.
  static absl::StatusOr<std::unique_ptr<Service>> Create(const ServiceOptions& options,
                                                         store::Store& store, Executor& core,
                                                         SlabExporter exporter, DaemonFacts facts,
                                                         const Clock& clock);
  ~Service();  // Stop()

  absl::Status Start();
  // Takes over the tenants file's new content: who is no longer listed, or acts for another tenant
  // now, loses its connections, sessions and calls in progress before this returns (sessions: soon
  // after); the others notice nothing. Requires: options.tenants was set. One thread at a time.
  // Errors: Internal, gRPC; then nothing has changed.
  absl::Status ReloadTenants(std::vector<TenantRule> tenants);
  // For handshakes from now on. Connections whose certificate it does not accept end soon.
  // Requires: options.tls was set.
  void ReloadTls(std::shared_ptr<const TlsContext> tls);
  // The daemon is about to stop: health turns to NOT_SERVING for good, a drain cannot be taken
  // back; calls are still served.
  void SetStopping();
  // What a metrics page shows. `facts.counters` are those of the doors.
  std::vector<CallRow> calls() const;
  std::vector<std::pair<std::string, uint64_t>> counters() const;
  // Ends all connections and sessions; calls in progress get `grace` to finish. The core must still
  // run. Idempotent.
  void Stop(absl::Duration grace);

 private:
  struct State;
  explicit Service(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace kvstore::service
