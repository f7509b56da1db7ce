// A gRPC server for each caller that may connect.
//
// gRPC does not tell a call which connection it came from, so identity is the server object that a
// connection was handed to, not something that is looked up. It also makes leaving simple: who is
// no longer listed loses the server, and with it every connection and call.
#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/resource_quota.h>

#include <chrono>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/base/unique_fd.h"
#include "kvstore/service/call.h"
#include "kvstore/service/caller.h"
#include "kvstore/service/kvstore_service.h"

namespace kvstore::service {

// Thread-safe; Update() and Shutdown() by one thread at a time.
class IdentityServers {
 public:
  // `parts` and `quota` outlive this.
  IdentityServers(const CallParts& parts, grpc::ResourceQuota& quota)
      : parts_(parts), quota_(quota) {}

  // Starts servers for those of `callers` that have none and ends the servers of everyone else:
  // their calls are cancelled and their connections closed before this returns. Those who stay
  // notice nothing. Errors: Internal, gRPC does not start one; then nothing has changed.
  absl::Status Update(const std::vector<Caller>& callers) ABSL_LOCKS_EXCLUDED(mutex_);
  // Closes the connection if `caller` has no server.
  void HandOver(UniqueFd connection, const Caller& caller) ABSL_LOCKS_EXCLUDED(mutex_);
  // What the health services say, also of servers to come.
  void SetServing(bool is_serving) ABSL_LOCKS_EXCLUDED(mutex_);
  void Shutdown(std::chrono::system_clock::time_point deadline) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Identity {
    Identity(const CallParts& parts, const Caller& who) : caller(who), data(parts, who) {}
    const Caller caller;
    KvStoreService data;
    std::unique_ptr<grpc::Server> server;
  };
  // Shared: a connection may be on its way to a server that is being ended.
  using Identities = std::vector<std::shared_ptr<Identity>>;

  Identities Current() const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return identities_;
  }

  const CallParts& parts_;
  grpc::ResourceQuota& quota_;
  mutable absl::Mutex mutex_;
  Identities identities_ ABSL_GUARDED_BY(mutex_);
  bool is_serving_ ABSL_GUARDED_BY(mutex_) = true;
};

}  // namespace kvstore::service
