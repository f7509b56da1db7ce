#include "kvstore/service/kvstore_service.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/service/acquire_call.h"
#include "kvstore/service/get_call.h"
#include "kvstore/service/put_call.h"
#include "kvstore/service/resolve.h"
#include "kvstore/service/translate.h"

namespace kvstore::service {
namespace {

constexpr int kBadBlocksMax = 1024;

using UnaryCallPtr = std::shared_ptr<UnaryCall>;

// `scope`: of the call that asked.
void WriteNamespace(const store::Store::OpenedNamespace& ns, const std::string& name,
                    const CallScope& scope, absl::Duration lease_time,
                    v1::OpenNamespaceResponse* out) {
  out->set_fingerprint(ns.fingerprint.bytes.data(), ns.fingerprint.bytes.size());
  out->set_page_bytes(ns.spec.shape.page_bytes());
  out->set_slot_bytes(ns.spec.shape.slot_bytes());
  out->set_name(name.empty() ? ns.fingerprint.Hex() : name);
  out->set_lease_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(lease_time)));
  WriteSpec(ns.spec, out->mutable_spec());
  if (scope.salt.empty()) return;
  // The operator's, not the client's: it is told that there is one, not which.
  out->mutable_spec()->clear_salt();
  out->set_has_tenant_salt(true);
}

// What a Reserve asks for, checked.
struct ReservePlan {
  NamespaceKey ns;
  std::optional<BlockHash> parent;
  uint32_t first_block_index = 0;
  std::vector<BlockHash> hashes;
  tiers::TierKind tier{};
};

absl::StatusOr<ReservePlan> ReadReserve(const v1::ReserveRequest& request,
                                        const std::string& salt) {
  ReservePlan plan;
  ASSIGN_OR_RETURN(plan.ns, ReadNamespaceRef(request.namespace_(), salt));
  ASSIGN_OR_RETURN(plan.parent, ReadParent(request.parent()));
  ASSIGN_OR_RETURN(plan.hashes, ReadHashes(request.hashes()));
  ASSIGN_OR_RETURN(plan.tier, ReadTier(request.tier()));
  plan.first_block_index = request.first_block_index();
  if (plan.hashes.empty()) return absl::InvalidArgumentError("hashes: none; valid: 1 to 65536");
  if (plan.parent.has_value() != (plan.first_block_index > 0)) {
    return absl::InvalidArgumentError("first_block_index is 0 exactly if parent is empty");
  }
  if (plan.first_block_index > UINT32_MAX - plan.hashes.size())
    return absl::InvalidArgumentError("first_block_index: too large");
  if (plan.tier == tiers::TierKind::kNvme)
    return absl::InvalidArgumentError("tier: TIER_NVME; valid: TIER_DRAM, TIER_GPU");
  return plan;
}

absl::StatusOr<std::vector<store::CommitBlock>> ReadCommit(const v1::CommitRequest& request) {
  const int count = request.block_size();
  if (request.page_checksum_size() != count) {
    return absl::InvalidArgumentError(absl::StrCat("columns differ in length: block has ", count,
                                                   ", page_checksum ",
                                                   request.page_checksum_size()));
  }
  if (count == 0 || static_cast<size_t>(count) > kBlocksPerCallMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("block: ", count, " of them; valid: 1 to ", kBlocksPerCallMax));
  }
  std::vector<store::CommitBlock> blocks(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    blocks[i] = {.block = request.block(i), .page_checksum = request.page_checksum(i)};
    if (i > 0 && blocks[i].block <= blocks[i - 1].block) {
      return absl::InvalidArgumentError(absl::StrCat(
          "block: positions must rise, but ", blocks[i].block, " follows ", blocks[i - 1].block));
    }
  }
  return blocks;
}

using BadByLease = std::map<uint64_t, std::vector<uint32_t>>;

absl::StatusOr<BadByLease> ReadRelease(const v1::ReleaseRequest& request) {
  if (static_cast<size_t>(request.lease_size()) > kBlocksPerCallMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("lease: ", request.lease_size(), " of them; at most ", kBlocksPerCallMax));
  }
  if (request.bad_size() > kBadBlocksMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("bad: ", request.bad_size(), " of them; at most ", kBadBlocksMax));
  }
  BadByLease leases;
  for (uint64_t lease : request.lease()) leases[lease];
  for (const auto& bad : request.bad()) {
    auto it = leases.find(bad.lease());
    if (it == leases.end())
      return absl::InvalidArgumentError(
          absl::StrCat("bad: lease ", bad.lease(), " is not among those released"));
    it->second.push_back(bad.block());
  }
  return leases;
}

}  // namespace

// Each method: admit, check the fields, post to the core, write the reply on the call's edge
// thread.
#define ENTER_UNARY(kind, request)                                           \
  absl::StatusOr<CallScope> entered =                                        \
      EnterCall(parts_, caller_, *context, kind, (request)->ByteSizeLong()); \
  if (!entered.ok()) return UnaryCall::Refuse(entered.status())
#define REFUSE_IF_ERROR(expr)                                                            \
  do {                                                                                   \
    if (absl::Status status_ = (expr); !status_.ok()) return UnaryCall::Refuse(status_); \
  } while (false)

grpc::ServerUnaryReactor* KvStoreService::OpenNamespace(Context* context,
                                                        const v1::OpenNamespaceRequest* request,
                                                        v1::OpenNamespaceResponse* response) {
  ENTER_UNARY(CallKind::kControl, request);
  std::string tenant = entered->tenant;
  if (!request->spec().tenant().empty()) {
    absl::StatusOr<std::string> named = caller_.TenantFor(request->spec().tenant());
    REFUSE_IF_ERROR(named.status());
    if (entered->session.has_value() && *named != tenant) {
      return UnaryCall::Refuse(
          absl::InvalidArgumentError("spec.tenant: another tenant than the session's"));
    }
    tenant = *std::move(named);
  }
  if (!request->name().empty()) REFUSE_IF_ERROR(CheckNamespaceName(request->name()));
  absl::StatusOr<NamespaceSpec> spec = ReadSpec(request->spec(), std::move(tenant));
  REFUSE_IF_ERROR(spec.status());
  // Of the tenant that is acted for, which an owner may name in the spec alone.
  entered->salt = parts_.access.Now()->SaltOf(spec->tenant);
  if (!entered->salt.empty()) {
    if (!spec->salt.empty()) {
      return UnaryCall::Refuse(absl::InvalidArgumentError(
          "spec.salt: the tenants file sets this tenant's salt; leave it empty"));
    }
    spec->salt = entered->salt;
  }
  UnaryCallPtr call = UnaryCall::Start(parts_, *std::move(entered), Operation::kOpenNamespace);
  call->PostToCore(
      [&parts = parts_, call, response, spec = *std::move(spec), name = request->name()]() mutable {
        if (call->is_cancelled()) return;
        parts.store.OpenNamespace(
            spec, StoredName(name, call->scope().salt),
            [&parts, call, response, name](absl::StatusOr<store::Store::OpenedNamespace> ns) {
              call->End(ns.status(), [&parts, call, response, name, ns] {
                WriteNamespace(*ns, name, call->scope(), parts.lease_time, response);
              });
            });
      });
  return call.get();
}

grpc::ServerUnaryReactor* KvStoreService::FindNamespace(Context* context,
                                                        const v1::FindNamespaceRequest* request,
                                                        v1::OpenNamespaceResponse* response) {
  ENTER_UNARY(CallKind::kControl, request);
  absl::StatusOr<NamespaceKey> key = ReadNamespaceRef(request->namespace_(), entered->salt);
  REFUSE_IF_ERROR(key.status());
  UnaryCallPtr call = UnaryCall::Start(parts_, *std::move(entered), Operation::kFindNamespace);
  call->PostToCore([&parts = parts_, call, response, key = *std::move(key)] {
    absl::StatusOr<store::Store::OpenedNamespace> ns =
        service::FindNamespace(parts.store, call->scope().tenant, key);
    call->End(ns.status(), [&parts, call, response, ns, name = key.name] {
      WriteNamespace(*ns, name, call->scope(), parts.lease_time, response);
    });
  });
  return call.get();
}

grpc::ServerUnaryReactor* KvStoreService::Match(Context* context, const v1::MatchRequest* request,
                                                v1::MatchResponse* response) {
  ENTER_UNARY(CallKind::kControl, request);
  absl::StatusOr<NamespaceKey> key = ReadNamespaceRef(request->namespace_(), entered->salt);
  REFUSE_IF_ERROR(key.status());
  absl::StatusOr<BlockKeys> blocks = ReadBlockKeys(request->hashes(), request->tokens());
  REFUSE_IF_ERROR(blocks.status());
  UnaryCallPtr call = UnaryCall::Start(parts_, *std::move(entered), Operation::kMatch);
  call->PostToCore([&parts = parts_, call, response, key = *std::move(key),
                    blocks = *std::move(blocks)]() mutable {
    if (call->is_cancelled()) return;
    ResolveBlocks(
        parts.store, parts.core, call->edge(), call->scope().tenant, std::move(key),
        std::move(blocks), [&parts, call, response](absl::StatusOr<ResolvedBlocks> resolved) {
          if (!resolved.ok()) return call->End(resolved.status());
          const store::MatchResult match = parts.store.Match(resolved->ns.id, resolved->hashes);
          call->End(absl::OkStatus(), [response, match, spec = resolved->ns.spec] {
            WriteMatch(match, spec, response);
          });
        });
  });
  return call.get();
}

grpc::ServerWriteReactor<v1::AcquireResponse>* KvStoreService::Acquire(
    Context* context, const v1::AcquireRequest* request) {
  return AcquireCall::Start(parts_, caller_, *context, *request);
}

grpc::ServerUnaryReactor* KvStoreService::Release(Context* context,
                                                  const v1::ReleaseRequest* request,
                                                  v1::ReleaseResponse*) {
  ENTER_UNARY(CallKind::kControl, request);
  absl::StatusOr<SessionRecord> session = SessionOf(*entered);
  REFUSE_IF_ERROR(session.status());
  absl::StatusOr<BadByLease> leases = ReadRelease(*request);
  REFUSE_IF_ERROR(leases.status());
  UnaryCallPtr call = UnaryCall::Start(parts_, *std::move(entered), Operation::kRelease);
  call->PostToCore([&parts = parts_, call, session = session->id, leases = *std::move(leases)] {
    for (const auto& [lease, bad] : leases) {
      // NotFound: it has expired, as the contract says.
      absl::Status released = parts.store.Release(session, LeaseId(lease), bad);
      if (!released.ok() && !absl::IsNotFound(released)) return call->End(released);
    }
    call->End(absl::OkStatus());
  });
  return call.get();
}

grpc::ServerUnaryReactor* KvStoreService::Renew(Context* context, const v1::RenewRequest* request,
                                                v1::RenewResponse*) {
  ENTER_UNARY(CallKind::kControl, request);
  absl::StatusOr<SessionRecord> session = SessionOf(*entered);
  REFUSE_IF_ERROR(session.status());
  if (static_cast<size_t>(request->lease_size()) > kBlocksPerCallMax) {
    return UnaryCall::Refuse(
        absl::InvalidArgumentError(absl::StrCat("lease: at most ", kBlocksPerCallMax)));
  }
  UnaryCallPtr call = UnaryCall::Start(parts_, *std::move(entered), Operation::kRenew);
  call->PostToCore(
      [&parts = parts_, call, session = session->id,
       leases = std::vector<uint64_t>(request->lease().begin(), request->lease().end())] {
        absl::Status first_error;
        for (uint64_t lease : leases)
          first_error.Update(parts.store.Renew(session, LeaseId(lease)));
        call->End(first_error);
      });
  return call.get();
}

grpc::ServerUnaryReactor* KvStoreService::Reserve(Context* context,
                                                  const v1::ReserveRequest* request,
                                                  v1::ReserveResponse* response) {
  ENTER_UNARY(CallKind::kControl, request);
  absl::StatusOr<SessionRecord> session = SessionOf(*entered);
  REFUSE_IF_ERROR(session.status());
  if (session->access != MemoryAccess::kReadWrite) {
    return UnaryCall::Refuse(
        absl::FailedPreconditionError("the session is read-only: it cannot reserve"));
  }
  absl::StatusOr<ReservePlan> plan = ReadReserve(*request, entered->salt);
  REFUSE_IF_ERROR(plan.status());
  UnaryCallPtr call = UnaryCall::Start(parts_, *std::move(entered), Operation::kReserve);
  call->PostToCore([&parts = parts_, call, response, session = session->id,
                    plan = *std::move(plan)] {
    if (call->is_cancelled()) return;
    store::Store& store = parts.store;
    absl::StatusOr<store::Store::OpenedNamespace> ns =
        service::FindNamespace(store, call->scope().tenant, plan.ns);
    if (!ns.ok()) return call->End(ns.status());
    absl::StatusOr<store::ReserveResult> result =
        store.Reserve(session, ns->id, plan.parent, plan.first_block_index, plan.hashes, plan.tier);
    if (!result.ok()) return call->End(result.status());
    // Gone already if the session has ended: then there is nothing to undo.
    Task undo = [&store, session, reservation = result->reservation] {
      store.Abort(session, reservation).IgnoreError();
    };
    call->End(
        absl::OkStatus(),
        [response, result = *std::move(result)] { WriteReserveResult(result, response); },
        std::move(undo));
  });
  return call.get();
}

grpc::ServerUnaryReactor* KvStoreService::Commit(Context* context, const v1::CommitRequest* request,
                                                 v1::CommitResponse*) {
  ENTER_UNARY(CallKind::kControl, request);
  absl::StatusOr<SessionRecord> session = SessionOf(*entered);
  REFUSE_IF_ERROR(session.status());
  absl::StatusOr<std::vector<store::CommitBlock>> blocks = ReadCommit(*request);
  REFUSE_IF_ERROR(blocks.status());
  UnaryCallPtr call = UnaryCall::Start(parts_, *std::move(entered), Operation::kCommit);
  call->PostToCore([&parts = parts_, call, session = session->id,
                    reservation = ReservationId(request->reservation()),
                    blocks = *std::move(blocks)] {
    call->End(parts.store.Commit(session, reservation, blocks));
  });
  return call.get();
}

grpc::ServerUnaryReactor* KvStoreService::Abort(Context* context, const v1::AbortRequest* request,
                                                v1::AbortResponse*) {
  ENTER_UNARY(CallKind::kControl, request);
  absl::StatusOr<SessionRecord> session = SessionOf(*entered);
  REFUSE_IF_ERROR(session.status());
  UnaryCallPtr call = UnaryCall::Start(parts_, *std::move(entered), Operation::kAbort);
  call->PostToCore([&parts = parts_, call, session = session->id,
                    reservation = ReservationId(request->reservation())] {
    call->End(parts.store.Abort(session, reservation));
  });
  return call.get();
}

grpc::ServerReadReactor<v1::PutRequest>* KvStoreService::Put(Context* context,
                                                             v1::PutResponse* response) {
  return PutCall::Start(parts_, caller_, *context, response);
}

grpc::ServerWriteReactor<v1::GetResponse>* KvStoreService::Get(Context* context,
                                                               const v1::GetRequest* request) {
  return GetCall::Start(parts_, caller_, *context, *request);
}

grpc::ServerUnaryReactor* KvStoreService::Clear(Context* context, const v1::ClearRequest* request,
                                                v1::ClearResponse* response) {
  ENTER_UNARY(CallKind::kControl, request);
  absl::StatusOr<NamespaceKey> key = ReadNamespaceRef(request->namespace_(), entered->salt);
  REFUSE_IF_ERROR(key.status());
  UnaryCallPtr call = UnaryCall::Start(parts_, *std::move(entered), Operation::kClear);
  call->PostToCore([&parts = parts_, call, response, key = *std::move(key)] {
    store::Store& store = parts.store;
    absl::StatusOr<store::Store::OpenedNamespace> ns =
        service::FindNamespace(store, call->scope().tenant, key);
    if (!ns.ok()) return call->End(ns.status());
    store.Clear(call->scope().tenant, ns->fingerprint,
                [&store, call, response, fingerprint = ns->fingerprint](absl::Status cleared) {
                  uint64_t epoch = 0;
                  for (const store::NamespaceRow& row : store.ListNamespaces()) {
                    if (row.fingerprint == fingerprint) epoch = row.epoch;
                  }
                  call->End(std::move(cleared), [response, epoch] { response->set_epoch(epoch); });
                });
  });
  return call.get();
}

#undef ENTER_UNARY
#undef REFUSE_IF_ERROR

}  // namespace kvstore::service
