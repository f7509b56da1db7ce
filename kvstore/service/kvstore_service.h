// The data service (proto/kvstore/v1/kvstore.proto) as one caller sees it.
//
// There is one instance, on one grpc::Server, for each identity that may connect: gRPC does not
// tell a call which connection it came from, so identity is the server object that a connection was
// handed to (ConnectionDoor), not something that is looked up.
//
// Threads: thread-safe; methods run on gRPC's threads and only translate and post.
#pragma once

#include "kvstore/service/call.h"
#include "kvstore/service/caller.h"
#include "kvstore/v1/kvstore.grpc.pb.h"

namespace kvstore::service {

class KvStoreService final : public v1::KvStore::CallbackService {
 public:
  // `parts` outlives the service.
  KvStoreService(const CallParts& parts, Caller caller)
      : parts_(parts), caller_(std::move(caller)) {}

  using Context = grpc::CallbackServerContext;
  grpc::ServerUnaryReactor* OpenNamespace(Context*, const v1::OpenNamespaceRequest*,
                                          v1::OpenNamespaceResponse*) override;
  grpc::ServerUnaryReactor* FindNamespace(Context*, const v1::FindNamespaceRequest*,
                                          v1::OpenNamespaceResponse*) override;
  grpc::ServerUnaryReactor* Match(Context*, const v1::MatchRequest*, v1::MatchResponse*) override;
  grpc::ServerWriteReactor<v1::AcquireResponse>* Acquire(Context*,
                                                         const v1::AcquireRequest*) override;
  grpc::ServerUnaryReactor* Release(Context*, const v1::ReleaseRequest*,
                                    v1::ReleaseResponse*) override;
  grpc::ServerUnaryReactor* Renew(Context*, const v1::RenewRequest*, v1::RenewResponse*) override;
  grpc::ServerUnaryReactor* Reserve(Context*, const v1::ReserveRequest*,
                                    v1::ReserveResponse*) override;
  grpc::ServerUnaryReactor* Commit(Context*, const v1::CommitRequest*,
                                   v1::CommitResponse*) override;
  grpc::ServerUnaryReactor* Abort(Context*, const v1::AbortRequest*, v1::AbortResponse*) override;
  grpc::ServerReadReactor<v1::PutRequest>* Put(Context*, v1::PutResponse*) override;
  grpc::ServerWriteReactor<v1::GetResponse>* Get(Context*, const v1::GetRequest*) override;
  grpc::ServerUnaryReactor* Clear(Context*, const v1::ClearRequest*, v1::ClearResponse*) override;

 private:
  const CallParts& parts_;
  const Caller caller_;
};

}  // namespace kvstore::service
