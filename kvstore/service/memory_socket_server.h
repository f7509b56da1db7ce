// The daemon's side of the memory socket (kvstore/base/memory_socket.h): sessions, and the memory
// that pages lie in.
//
// One connection is one session. Requests of a connection are served one at a time and in order;
// while one is with the core the connection is not read. The session ends in the core as soon as
// the connection hangs up, for whatever reason. Nothing here waits for a client: a reply that does
// not fit into the socket's buffer ends the connection, a client that says no Hello in time is
// dropped.
//
//   accepted -> awaiting Hello -> opening (core) -> open <-> mapping, acquiring, releasing (core)
//   any state -> hang-up, malformed packet, unread replies -> closed; the core is told
//
// Threads: one of its own; replies are posted to it from the core. Thread-safe.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kvstore/base/memory_socket.h"
#include "kvstore/base/unique_fd.h"
#include "kvstore/service/access_list.h"
#include "kvstore/service/call.h"
#include "kvstore/service/listening_socket.h"
#include "kvstore/service/poll_loop.h"
#include "kvstore/service/session_table.h"
#include "kvstore/store/store.h"

namespace kvstore::service {

// A slab for another process: [slab, generation table], already sealed and with the access that was
// asked for.
struct ExportedSlab {
  UniqueFd slab;
  UniqueFd generations;
  uint64_t slab_bytes = 0;
};
// Runs on the core thread. Errors: NotFound, no such slab of this tenant.
using SlabExporter = std::function<absl::StatusOr<ExportedSlab>(
    tiers::TierKind tier, uint32_t slab, std::string_view tenant, MemoryAccess access)>;

class MemorySocketServer final : private PollLoop::Owner {
 public:
  struct Options {
    size_t connections_max = 1024;
    size_t connections_per_uid_max = 1024;
    absl::Duration handshake_time = absl::Seconds(5);
    uint64_t incarnation = 0;
  };
  // What `parts` names outlives the server; the core still runs when Stop() is called.
  MemorySocketServer(const Options& options, const CallParts& parts, SlabExporter exporter);
  ~MemorySocketServer() override;  // Stop()

  // Before Start().
  void AddListener(ListeningSocket socket) { loop_.AddListener(std::move(socket)); }
  absl::Status Start() { return loop_.Start(); }
  // The access list has changed: ends, soon, the connections of those who may no longer connect or
  // are somebody else now.
  void Recheck();
  // Closes all connections and with them their sessions. Idempotent.
  void Stop();

  struct Counters {
    uint64_t accepted = 0;
    uint64_t refused = 0;    // uid, caps, descriptors
    uint64_t malformed = 0;  // packets that ended their connection
    uint64_t connections = 0;
  };
  Counters counters() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Connection {
    UniqueFd fd;
    Caller caller;
    absl::Time hello_by;          // InfiniteFuture once said
    size_t packet_bytes_max = 0;  // what a reply may have
    bool is_waiting_for_core = false;
    bool is_muted = false;  // not polled for packets
    // Shared with releases on their way.
    std::shared_ptr<std::atomic<uint32_t>> releases_in_flight =
        std::make_shared<std::atomic<uint32_t>>(0);
    std::optional<SessionToken> token;
    SessionId session;
    std::string tenant;
    MemoryAccess access = MemoryAccess::kReadOnly;
  };
  enum class Outcome { kKeep, kClose };
  // What the core answered, on its way to the server's thread. Null: the connection has gone, and
  // perhaps the server; then it gives back what the core gave.
  using Answer = absl::AnyInvocable<Outcome(Connection*)>;
  // The part that closures on the core keep alive: the server may be stopped before they run.
  struct Mailbox {
    absl::Mutex mutex;
    bool is_closed ABSL_GUARDED_BY(mutex) = false;
    std::vector<std::pair<uint64_t, Answer>> answers ABSL_GUARDED_BY(mutex);  // by connection
    std::shared_ptr<const WakeUp> wake_up;
    bool is_recheck_due ABSL_GUARDED_BY(mutex) = false;
    void Put(uint64_t connection, Answer answer) ABSL_LOCKS_EXCLUDED(mutex);
  };

  void OnAccepted(UniqueFd fd, bool is_unix) override;
  void OnNoDescriptor() override { ++counted_.refused; }
  void OnReady(uint64_t key, uint32_t events) override;
  void OnTurnEnd() override;
  absl::Time NextTurnBy() const override;
  Outcome OnPacket(uint64_t key, Connection& connection);
  Outcome OnMalformed(Connection& connection);
  Outcome OnHello(uint64_t key, Connection& connection, const MemoryRequest& request);
  Outcome OnMapSlab(uint64_t key, Connection& connection, const MemoryRequest& request);
  Outcome OnAcquire(uint64_t key, Connection& connection, std::span<const std::byte> packet);
  Outcome OnRelease(uint64_t key, Connection& connection, const MemoryRelease& request);
  void DrainMailbox();
  Outcome FinishOpen(Connection& connection, const absl::StatusOr<SessionId>& session);
  Outcome FinishMap(Connection& connection, const absl::StatusOr<ExportedSlab>& slab);
  void CloseSession(SessionId session);
  void Close(uint64_t key);
  void DropSilent();
  void DropUnlisted();

  const Options options_;
  const CallParts& parts_;
  const SlabExporter exporter_;

  // Confined to the server's thread once started.
  uint64_t next_key_ = 0;
  absl::flat_hash_map<uint64_t, Connection> connections_;
  absl::flat_hash_map<uid_t, size_t> connections_by_uid_;
  size_t silent_connections_ = 0;  // that have not said Hello
  std::vector<std::byte> packet_;  // the one that is being looked at
  Counters counted_;

  std::shared_ptr<Mailbox> mailbox_;
  mutable absl::Mutex mutex_;
  Counters counters_ ABSL_GUARDED_BY(mutex_);
  PollLoop loop_;
};

}  // namespace kvstore::service
