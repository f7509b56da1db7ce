// Established TLS connections: decides whom each belongs to, and carries bytes between the
// encrypted socket and one end of a socket pair whose other end gRPC serves as any other
// connection.
//
//   network <- TLS -> [pump] <- socket pair -> gRPC server of the caller
//
// A direction holds at most one piece (64 KiB) that its receiver has not taken; until it is gone,
// nothing more is read for that direction: back-pressure passes through, both ways. When gRPC ends
// its side, what it wrote before is delivered first, for at most drain_time.
//
// Threads: one of its own. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/unique_fd.h"
#include "kvstore/service/access_list.h"
#include "kvstore/service/caller.h"
#include "kvstore/service/poll_loop.h"
#include "kvstore/service/tls_context.h"
#include "kvstore/service/tls_door.h"

namespace kvstore::service {

class TlsPump final : private PollLoop::Owner {
 public:
  struct Options {
    size_t connections_max = 512;
    size_t connections_per_tenant_max = 256;
    absl::Duration drain_time = absl::Seconds(5);
  };
  // Runs on the pump's thread; takes the non-blocking descriptor.
  using HandOver = std::function<void(UniqueFd connection, const Caller& caller)>;

  // `access` outlives the pump.
  TlsPump(const Options& options, const AccessTable& access,
          std::shared_ptr<const TlsContext> context, const Clock& clock, HandOver hand_over);
  ~TlsPump() override;  // Stop()

  // Errors: errno's of epoll.
  absl::Status Start() { return loop_.Start(); }
  // Any thread. The connection is closed if no tenant lists its names, or over a cap.
  void Add(TlsPeer peer) ABSL_LOCKS_EXCLUDED(mutex_);
  void SetContext(std::shared_ptr<const TlsContext> context) ABSL_LOCKS_EXCLUDED(mutex_);
  // The access list or the context has changed: ends, soon, the connections of those who may no
  // longer connect, are somebody else now, or whose certificate the context does not accept.
  void Recheck() ABSL_LOCKS_EXCLUDED(mutex_);
  // Closes all connections. Idempotent.
  void Stop();

  struct Counters {
    uint64_t connections = 0;  // now
    uint64_t refused_name = 0;
    uint64_t refused_cap = 0;
    uint64_t ended_by_reload = 0;
  };
  Counters counters() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Connection;
  enum class Outcome { kGoOn, kEnd };

  void OnReady(uint64_t event, uint32_t events) override;
  void OnTurnEnd() override;
  absl::Time NextTurnBy() const override;
  void DrainInbox() ABSL_LOCKS_EXCLUDED(mutex_);
  void Enter(TlsPeer peer, const TlsContext& context);
  bool IsOverCap(const Caller& caller) const;
  void RecheckAll(const TlsContext& context);
  void Pump(uint64_t key);
  Outcome PumpIn(Connection& connection);
  Outcome PumpOut(Connection& connection);
  void SendInner(Connection& connection, std::string_view bytes);
  Outcome Send(Connection& connection, std::string_view bytes);
  void Watch(uint64_t key, Connection& connection);
  void End(uint64_t key);
  void DropUndrained();

  const Options options_;
  const AccessTable& access_;
  const Clock& clock_;
  const HandOver hand_over_;

  // Confined to the pump's thread once started.
  uint64_t next_key_ = 1;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Connection>> connections_;
  absl::flat_hash_map<std::string, size_t> connections_by_tenant_;
  size_t draining_ = 0;
  std::string scratch_;
  Counters counted_;

  mutable absl::Mutex mutex_;
  std::shared_ptr<const TlsContext> context_ ABSL_GUARDED_BY(mutex_);
  std::vector<TlsPeer> inbox_ ABSL_GUARDED_BY(mutex_);
  bool is_recheck_due_ ABSL_GUARDED_BY(mutex_) = false;
  Counters counters_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  PollLoop loop_;
};

}  // namespace kvstore::service
