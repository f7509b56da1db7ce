// StoreConnection is this process's connection to a daemon: one client and one opened namespace,
// shared by all sequences, so that slabs are mapped once.
//
// Threads: thread-safe after Open(). Shared by the sequences that use it, which may end in any
// order.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kvstore/client/client.h"

namespace kvstore::engine {

struct StoreConnectionOptions {
  std::string target;  // "unix:PATH"
  std::string namespace_name;
  NamespaceSpec spec;
  std::shared_ptr<client::DeviceSlabs> device_slabs = nullptr;  // of a back-end on a device
  absl::Duration connect_deadline = absl::Seconds(5);
};

class StoreConnection {
 public:
  // Connects and opens the namespace, within options.connect_deadline. Never fails: status() says
  // why the store cannot be used.
  static std::shared_ptr<StoreConnection> Open(StoreConnectionOptions options);

  const absl::Status& status() const { return status_of_connect_; }
  // Require: status().ok().
  client::Client& client() const { return *client_; }
  const client::Namespace& ns() const { return namespace_; }

 private:
  StoreConnection() = default;
  absl::Status Connect(StoreConnectionOptions options);

  absl::Status status_of_connect_;
  std::unique_ptr<client::Client> client_;
  client::Namespace namespace_;
};

}  // namespace kvstore::engine
