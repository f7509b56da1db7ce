// What a Client, its leases and its reservations share: the channel, the session, and one
// background thread.
//
// The thread opens the session, notices its hang-up and opens another one (backoff 20 ms to 1 s,
// jittered), renews the leases that are held, and tells the daemon what was released. Unix targets
// only; over TCP there is no session and no thread.
//
// Thread-safe.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kvstore/base/executor.h"
#include "kvstore/base/unique_fd.h"
#include "kvstore/client/channel.h"
#include "kvstore/client/client.h"
#include "kvstore/client/memory_session.h"
#include "kvstore/v1/kvstore.grpc.pb.h"

namespace kvstore::client {

// On the stack, first of all, in every callback from gRPC. gRPC 1.51 joins its callback threads
// when the last channel goes: if that happens on one of them, it joins itself and frees the queue
// that it runs on. A Connection whose last owner is a callback lets another thread destroy its
// channel.
class CallbackScope {
 public:
  CallbackScope() { ++depth_; }
  ~CallbackScope() { --depth_; }
  CallbackScope(const CallbackScope&) = delete;
  CallbackScope& operator=(const CallbackScope&) = delete;
  static bool IsActive() { return depth_ > 0; }

 private:
  inline static thread_local int depth_ = 0;
};

// Shared by whoever may need the daemon again, in any order of destruction.
class Connection final : public std::enable_shared_from_this<Connection> {
 public:
  // Errors: InvalidArgument, the target.
  static absl::StatusOr<std::shared_ptr<Connection>> Create(ClientOptions options);
  ~Connection();

  const ClientOptions& options() const { return options_; }
  const Target& target() const { return target_; }
  v1::KvStore::Stub& stub() { return *stub_; }
  grpc::Channel& channel() { return *channel_; }

  // The session. Waits only while one is being opened for the first time or after a hang-up, at
  // most `timeout`. Errors: Unavailable, PermissionDenied, ...: why there is none;
  // FailedPrecondition over TCP.
  absl::StatusOr<std::shared_ptr<MemorySession>> Session(absl::Duration timeout)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // The session if there is one now; null otherwise.
  std::shared_ptr<MemorySession> CurrentSession() ABSL_LOCKS_EXCLUDED(mutex_);
  // As Session(), but goes on waiting after failures until `timeout`. Errors: Unavailable, the last
  // failure.
  absl::Status WaitSession(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mutex_);
  // A call was refused because the daemon does not know the session: it is another daemon than
  // before.
  void OnSessionRefused(const std::shared_ptr<MemorySession>& session);

  // Metadata and deadline of a call. `session` may be null.
  void Prepare(grpc::ClientContext* context, const MemorySession* session,
               absl::Duration timeout) const;
  // The status of a call that used `session`, as the contract of client.h has it.
  absl::Status StatusOf(const grpc::Status& status, const std::shared_ptr<MemorySession>& session);

  // --- What the background thread does ---
  void set_lease_time(absl::Duration lease_time);
  void HoldLease(const std::shared_ptr<MemorySession>& session, uint64_t lease)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Tells the daemon soon, without waiting. `bad_blocks` of the lease had wrong bytes.
  void ReleaseLease(const std::shared_ptr<MemorySession>& session, uint64_t lease,
                    std::vector<uint32_t> bad_blocks) ABSL_LOCKS_EXCLUDED(mutex_);
  void AbortReservation(const std::shared_ptr<MemorySession>& session, uint64_t reservation)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // False, and `task` is dropped, once the client is being destroyed.
  [[nodiscard]] bool PostTask(Task task) ABSL_LOCKS_EXCLUDED(mutex_);

  // --- Calls in flight ---
  // False once the client is being destroyed: the call must not start.
  [[nodiscard]] bool BeginCall(grpc::ClientContext* context) ABSL_LOCKS_EXCLUDED(calls_mutex_);
  void EndCall(grpc::ClientContext* context) ABSL_LOCKS_EXCLUDED(calls_mutex_);
  // Cancels all calls, waits for their callbacks, joins the thread. Idempotent. Not from a
  // callback.
  void Shutdown() ABSL_LOCKS_EXCLUDED(mutex_, calls_mutex_);

 private:
  enum class SessionState { kOpening, kOpen, kFailed };
  struct Released {
    std::shared_ptr<MemorySession> session;
    uint64_t lease = 0;
    std::vector<uint32_t> bad_blocks;
  };
  struct Aborted {
    std::shared_ptr<MemorySession> session;
    uint64_t reservation = 0;
  };

  explicit Connection(ClientOptions options, Target target);
  void PrepareHousekeeping(grpc::ClientContext* context, const MemorySession& session) const;
  void Run();
  void OpenSession();
  void WaitForWork(absl::Duration timeout);
  void Wake();
  void RunTasks();
  void SendReleases();
  void SendAborts();
  void SendRenewals();
  absl::Duration RenewPeriod() const;
  bool IsStopping() ABSL_LOCKS_EXCLUDED(mutex_);
  bool IsNotOpening() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return session_state_ != SessionState::kOpening || stopping_;
  }
  bool IsOpen() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return session_state_ == SessionState::kOpen || stopping_;
  }
  bool HasNoCalls() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(calls_mutex_) { return calls_.empty(); }

  const ClientOptions options_;
  const Target target_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::KvStore::Stub> stub_;
  UniqueFd wake_;                     // eventfd
  std::atomic<int64_t> lease_us_{0};  // 0: not known yet

  absl::Mutex mutex_;
  SessionState session_state_ ABSL_GUARDED_BY(mutex_) = SessionState::kOpening;
  absl::Status session_error_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<MemorySession> session_ ABSL_GUARDED_BY(mutex_);
  std::vector<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  std::vector<Released> released_ ABSL_GUARDED_BY(mutex_);
  std::vector<Aborted> aborted_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, std::shared_ptr<MemorySession>> held_leases_
      ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;

  absl::Mutex calls_mutex_;
  absl::flat_hash_set<grpc::ClientContext*> calls_ ABSL_GUARDED_BY(calls_mutex_);
  bool calls_closed_ ABSL_GUARDED_BY(calls_mutex_) = false;
  std::thread thread_;
};

// Time left until `deadline` (absl::Now() + duration), or `by_default` if it is InfiniteFuture.
absl::Duration TimeLeft(absl::Time deadline, absl::Duration by_default);

}  // namespace kvstore::client
