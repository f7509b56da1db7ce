// The accept loop for TCP with TLS: takes connections through the handshake and passes on those
// that proved who they are.
//
//   accepted -> handshake -> HTTP/2 preface -> passed on, with its TLS state
//   silence past handshake_time, no or a bad certificate, TLS below 1.3, other protocols -> closed
//
// gRPC 1.51 can serve TLS on sockets that it accepts itself only, and then stops accepting for ever
// when descriptors run out (CVE-2023-4785). Here nothing of gRPC is reached before the peer's
// certificate has been verified, and identity is known before a request is parsed.
//
// Over handshakes_max the oldest handshake goes: silent connections cannot keep others out, who
// need two round trips.
//
// Threads: one of its own, so that a flood of handshakes costs established connections nothing but
// CPU. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/unique_fd.h"
#include "kvstore/service/listening_socket.h"
#include "kvstore/service/poll_loop.h"
#include "kvstore/service/tls_context.h"

namespace kvstore::service {

// A connection whose peer has shown a certificate that our authorities signed.
struct TlsPeer {
  UniqueFd fd;  // before `ssl`, which uses it
  SslPtr ssl;
  std::string head;  // decrypted so far: the HTTP/2 preface
};

class TlsDoor final : private PollLoop::Owner {
 public:
  struct Options {
    size_t handshakes_max = 128;
    absl::Duration handshake_time = absl::Seconds(5);
  };
  // Runs on the door's thread.
  using PassOn = std::function<void(TlsPeer peer)>;

  TlsDoor(const Options& options, std::shared_ptr<const TlsContext> context, const Clock& clock,
          PassOn pass_on);
  ~TlsDoor() override;  // Stop()

  // Before Start().
  void AddListener(ListeningSocket socket) { loop_.AddListener(std::move(socket)); }
  // Errors: errno's of epoll.
  absl::Status Start() { return loop_.Start(); }
  // For connections from now on.
  void SetContext(std::shared_ptr<const TlsContext> context) ABSL_LOCKS_EXCLUDED(mutex_);
  // Closes the listeners and the handshakes. Idempotent.
  void Stop();

  struct Counters {
    uint64_t accepted = 0;
    uint64_t refused_handshake = 0;  // certificate, protocol, silence
    uint64_t refused_fds = 0;        // no file descriptor was left
    uint64_t handshakes = 0;         // now
  };
  Counters counters() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Entering {
    TlsPeer peer;
    absl::Time give_up;
    bool is_established = false;
  };
  enum class Step { kWaitRead, kWaitWrite, kDone, kFailed };

  void OnAccepted(UniqueFd fd, bool is_unix) override;
  void OnNoDescriptor() override { ++counted_.refused_fds; }
  void OnReady(uint64_t key, uint32_t events) override;
  void OnTurnEnd() override;
  absl::Time NextTurnBy() const override;
  Step Advance(Entering& entering);
  Step AfterError(Entering& entering, int result);
  void Refuse(uint64_t key, const std::string& why);
  void DropSilent();

  const Options options_;
  const Clock& clock_;
  const PassOn pass_on_;

  // Confined to the door's thread once started.
  uint64_t next_key_ = 0;
  std::map<uint64_t, Entering> entering_;  // oldest first
  Counters counted_;

  mutable absl::Mutex mutex_;
  std::shared_ptr<const TlsContext> context_ ABSL_GUARDED_BY(mutex_);
  Counters counters_ ABSL_GUARDED_BY(mutex_);
  PollLoop loop_;
};

}  // namespace kvstore::service
