// The admin service (proto/kvstore/v1/admin.proto). It is served on the admin socket only, whose
// door lets in nobody but the daemon's own uid and root.
//
// Threads: thread-safe; as KvStoreService.
#pragma once

#include <utility>

#include "kvstore/service/call.h"
#include "kvstore/service/caller.h"
#include "kvstore/service/daemon_facts.h"
#include "kvstore/v1/admin.grpc.pb.h"

namespace kvstore::service {

class AdminService final : public v1::Admin::CallbackService {
 public:
  // `parts` and `facts` outlive the service. `caller`: the daemon's own uid.
  AdminService(const CallParts& parts, const DaemonFacts& facts, Caller caller)
      : parts_(parts), facts_(facts), caller_(std::move(caller)) {}

  using Context = grpc::CallbackServerContext;
  grpc::ServerUnaryReactor* Status(Context*, const v1::StatusRequest*,
                                   v1::StatusResponse*) override;
  grpc::ServerUnaryReactor* Config(Context*, const v1::ConfigRequest*,
                                   v1::ConfigResponse*) override;
  grpc::ServerUnaryReactor* Namespaces(Context*, const v1::NamespacesRequest*,
                                       v1::NamespacesResponse*) override;
  grpc::ServerUnaryReactor* List(Context*, const v1::ListRequest*, v1::ListResponse*) override;
  grpc::ServerUnaryReactor* Evict(Context*, const v1::EvictRequest*, v1::EvictResponse*) override;
  grpc::ServerUnaryReactor* Tenants(Context*, const v1::TenantsRequest*,
                                    v1::TenantsResponse*) override;
  grpc::ServerUnaryReactor* SetQuota(Context*, const v1::SetQuotaRequest*,
                                     v1::SetQuotaResponse*) override;
  grpc::ServerWriteReactor<v1::VerifyResponse>* Verify(Context*, const v1::VerifyRequest*) override;
  grpc::ServerWriteReactor<v1::DrainResponse>* Drain(Context*, const v1::DrainRequest*) override;
  grpc::ServerUnaryReactor* Resume(Context*, const v1::ResumeRequest*,
                                   v1::ResumeResponse*) override;

 private:
  absl::StatusOr<CallScope> Enter(const Context& context, CallKind kind) const;

  const CallParts& parts_;
  const DaemonFacts& facts_;
  const Caller caller_;
};

}  // namespace kvstore::service
