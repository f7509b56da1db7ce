// StoreConnection is this process's connection to a daemon: one client and one opened namespace,
// shared by all sequences, so that slabs are mapped once.
//
// The daemon may come and go. Use() says what a sequence can use now; who then finds that it cannot
// calls Suspect(), and the next Use() opens the namespace again (a restarted daemon may not know
// it), at most once in kFresh and one sequence at a time: the others get what it found.
//
// Threads: thread-safe. Shared by the sequences that use it, which may end in any order.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kvstore/client/client.h"

namespace kvstore::engine {

struct StoreConnectionOptions {
  std::string target;  // "unix:PATH"
  std::string namespace_name;
  NamespaceSpec spec;
  std::shared_ptr<client::DeviceSlabs> device_slabs = nullptr;  // of a back-end on a device
  absl::Duration connect_deadline = absl::Seconds(5);
  absl::Duration reopen_deadline = absl::Seconds(1);
};

class StoreConnection {
 public:
  static constexpr absl::Duration kFresh = absl::Seconds(1);

  // Connects and opens the namespace, within options.connect_deadline. Never fails: Use() says why
  // the store cannot be used.
  static std::shared_ptr<StoreConnection> Open(StoreConnectionOptions options);

  // The namespace. Waits only after a failure, for at most options.reopen_deadline. Errors: why the
  // store cannot be used now.
  absl::StatusOr<client::Namespace> Use() ABSL_LOCKS_EXCLUDED(mutex_);
  // What Use() said did not hold.
  void Suspect() ABSL_LOCKS_EXCLUDED(mutex_);
  // Requires: Use() was ok once.
  client::Client& client() const { return *client_; }

 private:
  explicit StoreConnection(StoreConnectionOptions options) : options_(std::move(options)) {}
  absl::StatusOr<client::Namespace> OpenNamespace(absl::Duration deadline);
  bool IsNotOpening() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !is_opening_; }

  const StoreConnectionOptions options_;
  absl::StatusOr<std::unique_ptr<client::Client>> made_;
  client::Client* client_ = nullptr;  // made_'s
  absl::Mutex mutex_;
  absl::StatusOr<client::Namespace> namespace_ ABSL_GUARDED_BY(mutex_);
  bool is_suspect_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_opening_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time opened_at_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
};

}  // namespace kvstore::engine
