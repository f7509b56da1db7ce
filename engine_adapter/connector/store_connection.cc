#include "engine_adapter/connector/store_connection.h"

#include <utility>

#include "absl/time/clock.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {

std::shared_ptr<StoreConnection> StoreConnection::Open(StoreConnectionOptions options) {
  std::shared_ptr<StoreConnection> connection(new StoreConnection);
  connection->status_of_connect_ = connection->Connect(std::move(options));
  return connection;
}

absl::Status StoreConnection::Connect(StoreConnectionOptions options) {
  const absl::Time deadline = absl::Now() + options.connect_deadline;
  ASSIGN_OR_RETURN(client_, client::Client::Create({.target = std::move(options.target),
                                                    .device_slabs = options.device_slabs}));
  RETURN_IF_ERROR(client_->WaitConnected(deadline));
  ASSIGN_OR_RETURN(namespace_, client_->Open(options.namespace_name, options.spec, deadline));
  return absl::OkStatus();
}

}  // namespace kvstore::engine
