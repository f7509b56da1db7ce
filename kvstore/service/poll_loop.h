// PollLoop: a thread that accepts on listeners and waits for the descriptors of connections. What a
// connection means is its owner's business; this is the part that all doors have in common.
//
// A turn: connections that arrived are given to the owner, then the events of those it watches, then
// the end of the turn. Where no file descriptor is left the loop goes on, a little slower, instead
// of spinning on a listener that stays readable.
//
// Threads: one of its own, on which all of Owner runs. Start(), Stop() and Wake() are called on any
// other; the rest is for the owner, on the loop's thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/unique_fd.h"
#include "kvstore/service/listening_socket.h"

namespace kvstore::service {

// Ends a wait of the loop. Thread-safe; may outlive the loop.
class WakeUp {
 public:
  WakeUp();
  void operator()() const;

 private:
  friend class PollLoop;
  UniqueFd event_;
};

class PollLoop {
 public:
  class Owner {
   public:
    virtual ~Owner() = default;
    // Non-blocking.
    virtual void OnAccepted(UniqueFd /*connection*/, bool /*is_unix*/) {}
    // A connection could not be accepted: no file descriptor was left.
    virtual void OnNoDescriptor() {}
    virtual void OnReady(uint64_t key, uint32_t events) = 0;
    virtual void OnTurnEnd() = 0;
    // When a turn is wanted whatever happens; InfiniteFuture: not at all.
    virtual absl::Time NextTurnBy() const { return absl::InfiniteFuture(); }
  };
  struct Options {
    const char* thread_name = "";  // at most 15 bytes
    // Before other events get their turn.
    size_t accepts_per_turn = 64;
    bool is_preferred = false;  // see thread_preference.h; otherwise it gives way
  };

  // `clock` and `owner` outlive the loop's thread: the owner calls Stop() before it goes.
  PollLoop(const Options& options, const Clock& clock, Owner& owner);
  ~PollLoop();  // Stop()

  void AddListener(ListeningSocket socket);  // before Start()
  // Errors: errno's of epoll.
  absl::Status Start();
  // Waits for the thread, closes the listeners. Idempotent.
  void Stop();
  std::shared_ptr<const WakeUp> wake_up() const { return wake_up_; }
  void Wake() const { (*wake_up_)(); }

  // `key` is below 2^63 and comes back with the events. False: the kernel has no room. Closing a
  // descriptor ends its watch.
  [[nodiscard]] bool Watch(int fd, uint64_t key, uint32_t events);
  void Change(int fd, uint64_t key, uint32_t events);
  void Unwatch(int fd);

 private:
  void Run();
  void AcceptAll(ListeningSocket& listener);
  int TimeoutMs() const;

  const Options options_;
  const Clock& clock_;
  Owner& owner_;
  std::vector<ListeningSocket> listeners_;
  UniqueFd epoll_;
  const std::shared_ptr<const WakeUp> wake_up_;
  bool is_exhausted_ = false;  // no descriptor for a moment
  std::atomic<bool> is_stopping_ = false;
  std::thread thread_;
};

}  // namespace kvstore::service
