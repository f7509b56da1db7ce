#include "engine_adapter/connector/store_connection.h"

#include <utility>

#include "absl/time/clock.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::engine {

std::shared_ptr<StoreConnection> StoreConnection::Open(StoreConnectionOptions options) {
  std::shared_ptr<StoreConnection> connection(new StoreConnection(std::move(options)));
  const StoreConnectionOptions& kept = connection->options_;
  connection->made_ =
      client::Client::Create({.target = kept.target, .device_slabs = kept.device_slabs});
  if (connection->made_.ok()) connection->client_ = connection->made_->get();
  absl::StatusOr<client::Namespace> opened = connection->OpenNamespace(kept.connect_deadline);
  absl::MutexLock lock(&connection->mutex_);
  connection->namespace_ = std::move(opened);
  connection->opened_at_ = absl::Now();
  return connection;
}

absl::StatusOr<client::Namespace> StoreConnection::OpenNamespace(absl::Duration deadline) {
  RETURN_IF_ERROR(made_.status());
  const absl::Time end = absl::Now() + deadline;
  RETURN_IF_ERROR(client_->WaitConnected(end));
  return client_->Open(options_.namespace_name, options_.spec, end);
}

absl::StatusOr<client::Namespace> StoreConnection::Use() {
  {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &StoreConnection::IsNotOpening));
    const bool is_good = namespace_.ok() && !is_suspect_;
    if (is_good || absl::Now() - opened_at_ < kFresh) return namespace_;
    is_opening_ = true;
  }
  absl::StatusOr<client::Namespace> opened = OpenNamespace(options_.reopen_deadline);
  absl::MutexLock lock(&mutex_);
  is_opening_ = is_suspect_ = false;
  opened_at_ = absl::Now();
  namespace_ = opened;
  return opened;
}

void StoreConnection::Suspect() {
  absl::MutexLock lock(&mutex_);
  is_suspect_ = true;
}

}  // namespace kvstore::engine
