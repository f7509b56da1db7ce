// The daemon's accept loop for gRPC: decides who comes in before gRPC sees a byte, and hands over
// connected sockets.
//
// gRPC's own listener stops for ever when file descriptors run out (CVE-2023-4785) and does not
// tell the peer's uid. Here each connection is accepted by us, its uid read from the socket
// (SO_PEERCRED) and checked, counted against the caps, and held until it has sent the 24 bytes that
// open HTTP/2. A client that says nothing, or something else, is dropped without having cost gRPC
// anything.
//
//   accepted -> (uid not allowed, over a cap) closed
//            -> waiting for the preface -> (silence past handshake_time, other bytes, hang-up)
//            closed
//                                       -> handed over: gRPC owns the descriptor
//
// gRPC closes handed-over descriptors without telling us. A connection is known to be gone when its
// descriptor number no longer names the same socket inode; the table is swept when a cap is met and
// once a second while there are connections.
//
// Threads: one of its own. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/unique_fd.h"
#include "kvstore/service/access_list.h"
#include "kvstore/service/listening_socket.h"
#include "kvstore/service/poll_loop.h"

namespace kvstore::service {

class ConnectionDoor final : private PollLoop::Owner {
 public:
  struct Options {
    const char* thread_name = "kv-door";  // at most 15 bytes
    size_t connections_max = 512;
    size_t connections_per_uid_max = 256;
    absl::Duration handshake_time = absl::Seconds(5);
  };
  // Runs on the door's thread; takes the non-blocking descriptor.
  using HandOver = std::function<void(UniqueFd connection, const Caller& caller)>;

  // `access` outlives the door.
  ConnectionDoor(const Options& options, const AccessTable& access, const Clock& clock,
                 HandOver hand_over);
  ~ConnectionDoor() override;  // Stop()

  // Before Start().
  void AddListener(ListeningSocket socket) { loop_.AddListener(std::move(socket)); }
  // Errors: errno's of epoll.
  absl::Status Start() { return loop_.Start(); }
  // Closes the listeners and the connections that are not handed over. Idempotent.
  void Stop();

  struct Counters {
    uint64_t accepted = 0;
    uint64_t refused_uid = 0;        // not in the access list
    uint64_t refused_cap = 0;        // connections_max, connections_per_uid_max
    uint64_t refused_fds = 0;        // no file descriptor was left
    uint64_t refused_handshake = 0;  // silent, hung up, or not HTTP/2
    uint64_t connections = 0;        // now, as far as known
  };
  Counters counters() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // Counted together.
  using CallerKey = int64_t;
  struct Waiting {
    UniqueFd fd;
    Caller caller;
    absl::Time give_up;
  };
  struct HandedOver {
    int fd = -1;  // gRPC's; only looked at
    uint64_t inode = 0;
    CallerKey caller = 0;
  };

  void OnAccepted(UniqueFd fd, bool is_unix) override;
  void OnNoDescriptor() override;
  void OnReady(uint64_t key, uint32_t events) override;
  void OnTurnEnd() override;
  absl::Time NextTurnBy() const override;
  void DropSilent();
  void SweepGone();
  bool IsOverCap(CallerKey caller);
  size_t num_connections() const { return waiting_.size() + handed_over_.size(); }
  void Forget(CallerKey caller);

  const Options options_;
  const AccessTable& access_;
  const Clock& clock_;
  const HandOver hand_over_;

  // Confined to the door's thread once started.
  uint64_t next_key_ = 0;
  absl::flat_hash_map<uint64_t, Waiting> waiting_;
  std::vector<HandedOver> handed_over_;
  absl::flat_hash_map<CallerKey, size_t> connections_by_caller_;
  absl::Time next_sweep_ = absl::InfiniteFuture();
  Counters counted_;

  mutable absl::Mutex mutex_;
  Counters counters_ ABSL_GUARDED_BY(mutex_);
  PollLoop loop_;
};

}  // namespace kvstore::service
