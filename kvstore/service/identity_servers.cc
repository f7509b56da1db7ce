#include "kvstore/service/identity_servers.h"

#include <algorithm>
#include <utility>

#include "kvstore/base/status_macros.h"
#include "kvstore/service/grpc_server.h"

namespace kvstore::service {
namespace {

// Reflection's streams take a thread each, on all servers together 4 a server.
constexpr int kThreadsPerServer = 2;
constexpr int kReflectionThreadsMax = 8;

}  // namespace

absl::Status IdentityServers::Update(const std::vector<Caller>& callers) {
  const Identities before = Current();
  quota_.SetMaxThreads(static_cast<int>(callers.size() + before.size()) * kThreadsPerServer +
                       kReflectionThreadsMax);
  Identities after;
  for (const Caller& caller : callers) {
    const auto known = std::ranges::find_if(
        before, [&caller](const auto& identity) { return identity->caller == caller; });
    if (known != before.end()) {
      after.push_back(*known);
      continue;
    }
    auto identity = std::make_shared<Identity>(parts_, caller);
    ASSIGN_OR_RETURN(identity->server, StartGrpcServer({&identity->data}, quota_));
    after.push_back(std::move(identity));
  }
  {
    absl::MutexLock lock(&mutex_);
    identities_ = after;
    for (const std::shared_ptr<Identity>& identity : after)
      service::SetServing(*identity->server, is_serving_);
  }
  for (const std::shared_ptr<Identity>& identity : before) {
    if (std::ranges::find(after, identity) == after.end())
      identity->server->Shutdown(std::chrono::system_clock::now());
  }
  return absl::OkStatus();
}

void IdentityServers::HandOver(UniqueFd connection, const Caller& caller) {
  for (const std::shared_ptr<Identity>& identity : Current()) {
    if (identity->caller == caller) return AddConnection(*identity->server, std::move(connection));
  }
}

void IdentityServers::SetServing(bool is_serving) {
  absl::MutexLock lock(&mutex_);
  is_serving_ = is_serving;
  for (const std::shared_ptr<Identity>& identity : identities_)
    service::SetServing(*identity->server, is_serving);
}

void IdentityServers::Shutdown(std::chrono::system_clock::time_point deadline) {
  for (const std::shared_ptr<Identity>& identity : Current()) identity->server->Shutdown(deadline);
}

}  // namespace kvstore::service
