#include "kvstore/service/admin_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"
#include "kvstore/service/drain_call.h"
#include "kvstore/service/translate.h"
#include "kvstore/service/verify_call.h"

namespace kvstore::service {
namespace {

constexpr uint32_t kListDefault = 100;
constexpr uint32_t kListMax = 10'000;

using UnaryCallPtr = std::shared_ptr<UnaryCall>;

const char* StateName(tiers::TierState state) {
  switch (state) {
    case tiers::TierState::kServing:
      return "serving";
    case tiers::TierState::kReadOnly:
      return "read-only";
    case tiers::TierState::kFailed:
      break;
  }
  return "failed";
}

void WriteTier(const store::TierRow& row, v1::TierStatus* out) {
  out->set_tier(ToWire(row.kind));
  out->set_capacity_bytes(row.stats.capacity_bytes);
  out->set_used_bytes(row.stats.used_bytes);
  out->set_pages(row.stats.used_pages);
  out->set_hit_pages(row.counters.hit_pages);
  out->set_read_bytes(row.stats.read_bytes);
  out->set_write_bytes(row.stats.write_bytes);
  out->set_evicted_pages(row.counters.evicted_pages);
  out->set_in_flight(row.stats.in_flight);
  out->set_state(StateName(row.state));
  out->set_quarantined_pages(row.stats.quarantined_pages);
  auto& counters = *out->mutable_counters();
  counters["read_errors"] = row.stats.read_errors;
  counters["write_errors"] = row.stats.write_errors;
  counters["checksum_errors"] = row.stats.checksum_errors;
  counters["deadline_misses"] = row.stats.deadline_misses;
  counters["breaker"] = static_cast<uint64_t>(row.breaker);  // 0 closed, 1 open, 2 half-open
  counters["breaker_openings"] = row.stats.breaker_openings;
  counters["lost_pages"] = row.counters.lost_pages;
  counters["promoted_pages"] = row.counters.promoted_pages;
  counters["demoted_pages"] = row.counters.demoted_pages;
  counters["move_failures"] = row.counters.move_failures;
  counters["recovered_pages"] = row.counters.recovered_pages;
  counters["verified_pages"] = row.counters.verified_pages;
  counters["differing_pages"] = row.counters.differing_pages;
  counters["unreadable_pages"] = row.counters.unreadable_pages;
  counters["deadline_misses"] = row.counters.deadline_misses;
  out->set_waiting_moves(row.waiting_moves);
}

void WriteCounters(const store::StoreCounters& c,
                   google::protobuf::Map<std::string, uint64_t>* out) {
  (*out)["acquires"] = c.acquires;
  (*out)["matched_blocks"] = c.matched_blocks;
  (*out)["requested_blocks"] = c.requested_blocks;
  (*out)["reserved_blocks"] = c.reserved_blocks;
  (*out)["committed_blocks"] = c.committed_blocks;
  (*out)["aborted_blocks"] = c.aborted_blocks;
  (*out)["no_space_blocks"] = c.no_space_blocks;
  (*out)["dropped_blocks"] = c.dropped_blocks;
  (*out)["leases_expired"] = c.leases_expired;
  (*out)["reservations_expired"] = c.reservations_expired;
  (*out)["sessions_ended"] = c.sessions_ended;
  (*out)["reported_bad_pages"] = c.reported_bad_pages;
  (*out)["skipped_writes"] = c.skipped_writes;
  (*out)["truncated_loads"] = c.truncated_loads;
}

void WriteStatus(const store::StoreStatus& status, const store::DrainResult& drain,
                 const DaemonFacts& facts, absl::Time now, v1::StatusResponse* out) {
  for (std::string& line : facts.degraded()) out->add_degraded(std::move(line));
  for (const store::TierRow& row : status.tiers) {
    WriteTier(row, out->add_tiers());
    if (!row.degraded.empty()) out->add_degraded(row.degraded);
    if (row.state != tiers::TierState::kServing) {
      out->add_degraded(
          absl::StrCat("tier ", AbslView(tiers::TierName(row.kind)), " is ", StateName(row.state)));
    }
  }
  out->set_health(status.is_draining         ? v1::StatusResponse::HEALTH_DRAINING
                  : out->degraded_size() > 0 ? v1::StatusResponse::HEALTH_DEGRADED
                                             : v1::StatusResponse::HEALTH_SERVING);
  out->set_version(facts.version);
  out->set_commit(facts.commit);
  out->set_incarnation(facts.incarnation);
  out->set_uptime_s(absl::ToDoubleSeconds(now - facts.started));
  out->set_sessions(static_cast<uint32_t>(status.sessions));
  out->set_leases(status.leases);
  out->set_reservations(status.reservations);
  out->set_blocks(status.blocks);
  out->set_namespaces(status.namespaces);
  out->set_is_recovering(status.is_recovering);
  if (status.is_draining) WriteDrain(drain, out->mutable_drain());
  WriteCounters(status.counters, out->mutable_counters());
  for (const auto& [name, value] : facts.counters()) (*out->mutable_counters())[name] = value;
}

void WriteNamespaceRow(const store::NamespaceRow& row, v1::NamespacesResponse::Namespace* out) {
  out->set_name(row.name);
  out->set_fingerprint(row.fingerprint.bytes.data(), row.fingerprint.bytes.size());
  WriteSpec(row.spec, out->mutable_spec());
  // A salt is what keeps caches apart: shown only as set or not.
  if (!row.spec.salt.empty()) out->mutable_spec()->set_salt("(set)");
  out->set_epoch(row.epoch);
  out->set_is_open(row.is_open);
  out->set_page_bytes(row.spec.shape.page_bytes());
  for (size_t i = 0; i < row.bytes_by_tier.size(); ++i) {
    if (row.bytes_by_tier[i] == 0) continue;
    auto* bytes = out->add_bytes_by_tier();
    bytes->set_tier(ToWire(static_cast<tiers::TierKind>(i)));
    bytes->set_bytes(row.bytes_by_tier[i]);
  }
}

void WriteBlockRow(const store::BlockRow& row, v1::ListResponse::Block* out) {
  out->set_hash(row.hash.bytes.data(), row.hash.bytes.size());
  if (row.block_index > 0) out->set_parent(row.parent.bytes.data(), row.parent.bytes.size());
  out->set_block_index(row.block_index);
  for (size_t i = 0; i < row.resident.size(); ++i) {
    if (row.resident[i]) out->add_tiers(ToWire(static_cast<tiers::TierKind>(i)));
  }
  out->set_bytes(row.bytes);
  out->set_age_s(absl::ToDoubleSeconds(row.age));
  out->set_hits(row.hits);
  out->set_leases(row.leases);
}

// Core thread. The tenant's namespace of that name, else any tenant's by fingerprint in hex.
absl::StatusOr<store::Store::OpenedNamespace> FindForAdmin(const store::Store& store,
                                                           const std::string& tenant,
                                                           const std::string& name) {
  absl::StatusOr<store::Store::OpenedNamespace> found =
      store.FindNamespace(tenant, std::string_view(name));
  if (found.ok()) return found;
  for (const store::NamespaceRow& row : store.ListNamespaces()) {
    if (row.fingerprint.Hex() == name) return store.FindNamespace(row.spec.tenant, row.fingerprint);
  }
  return found;
}

void WriteTenantRow(const store::TenantRow& row, const CallGate::TenantCounters& calls,
                    v1::TenantStatus* out) {
  out->set_name(row.name);
  for (const store::TenantRow::InTier& in : row.tiers) {
    v1::TenantTier* tier = out->add_tiers();
    tier->set_tier(ToWire(in.kind));
    tier->set_quota_bytes(in.quota_bytes);
    tier->set_share_bytes(in.share_bytes);
    tier->set_used_bytes(in.used_bytes);
    tier->set_reserved_bytes(in.reserved_bytes);
    tier->set_pages(in.pages);
    tier->set_evicted_pages(in.evicted_pages);
  }
  out->set_sessions(row.sessions);
  out->set_leases(row.leases);
  out->set_leased_blocks(row.leased_blocks);
  out->set_reservations(row.reservations);
  out->set_reserved_blocks(row.reserved_blocks);
  out->set_moves(row.moves);
  out->set_calls(calls.calls);
  out->set_call_bytes(calls.bytes);
  out->set_calls_max(calls.calls_max);
}

// Core thread. `tenant`: empty for all.
std::vector<store::TenantRow> TenantRows(const store::Store& store, const std::string& tenant) {
  std::vector<store::TenantRow> rows = store.ListTenants();
  if (!tenant.empty())
    std::erase_if(rows, [&](const store::TenantRow& row) { return row.name != tenant; });
  return rows;
}

}  // namespace

absl::StatusOr<CallScope> AdminService::Enter(const Context& context, CallKind kind) const {
  return EnterCall(parts_, caller_, context, kind, 0, Counted::kAsAdmin);
}

grpc::ServerUnaryReactor* AdminService::Status(Context* context, const v1::StatusRequest*,
                                               v1::StatusResponse* response) {
  absl::StatusOr<CallScope> entered = Enter(*context, CallKind::kControl);
  if (!entered.ok()) return UnaryCall::Refuse(entered.status());
  UnaryCallPtr call = UnaryCall::Start(parts_, *std::move(entered), Operation::kAdmin);
  call->PostToCore([&parts = parts_, &facts = facts_, call, response] {
    call->End(absl::OkStatus(), [&parts, &facts, response, status = parts.store.status(),
                                 drain = parts.store.drain_progress()] {
      WriteStatus(status, drain, facts, parts.clock.Now(), response);
    });
  });
  return call.get();
}

grpc::ServerUnaryReactor* AdminService::Config(Context* context, const v1::ConfigRequest*,
                                               v1::ConfigResponse* response) {
  absl::StatusOr<CallScope> entered = Enter(*context, CallKind::kControl);
  if (!entered.ok()) return UnaryCall::Refuse(entered.status());
  UnaryCallPtr call = UnaryCall::Start(parts_, *std::move(entered), Operation::kAdmin);
  call->End(absl::OkStatus(), [&facts = facts_, response] {
    for (DaemonFacts::ConfigRow& row : facts.config()) {
      auto* value = response->add_values();
      value->set_key(std::move(row.key));
      value->set_value(std::move(row.value));
      value->set_source(std::move(row.source));
    }
  });
  return call.get();
}

grpc::ServerUnaryReactor* AdminService::Namespaces(Context* context, const v1::NamespacesRequest*,
                                                   v1::NamespacesResponse* response) {
  absl::StatusOr<CallScope> entered = Enter(*context, CallKind::kControl);
  if (!entered.ok()) return UnaryCall::Refuse(entered.status());
  UnaryCallPtr call = UnaryCall::Start(parts_, *std::move(entered), Operation::kAdmin);
  call->PostToCore([&parts = parts_, call, response] {
    call->End(absl::OkStatus(), [response, rows = parts.store.ListNamespaces()] {
      for (const store::NamespaceRow& row : rows)
        WriteNamespaceRow(row, response->add_namespaces());
    });
  });
  return call.get();
}

grpc::ServerUnaryReactor* AdminService::List(Context* context, const v1::ListRequest* request,
                                             v1::ListResponse* response) {
  absl::StatusOr<CallScope> entered = Enter(*context, CallKind::kControl);
  if (!entered.ok()) return UnaryCall::Refuse(entered.status());
  if (absl::Status status = CheckNamespaceName(request->namespace_()); !status.ok())
    return UnaryCall::Refuse(status);
  absl::StatusOr<std::optional<tiers::TierKind>> tier = ReadOptionalTier(request->tier());
  if (!tier.ok()) return UnaryCall::Refuse(tier.status());
  if (request->limit() > kListMax) {
    return UnaryCall::Refuse(absl::InvalidArgumentError(
        absl::StrCat("limit: ", request->limit(), "; at most ", kListMax)));
  }
  UnaryCallPtr call = UnaryCall::Start(parts_, *std::move(entered), Operation::kAdmin);
  call->PostToCore([&parts = parts_, call, response, name = request->namespace_(), tier = *tier,
                    limit = request->limit() == 0 ? kListDefault : request->limit()] {
    absl::StatusOr<store::Store::OpenedNamespace> ns =
        FindForAdmin(parts.store, call->scope().tenant, name);
    if (!ns.ok()) return call->End(ns.status());
    call->End(absl::OkStatus(), [response, rows = parts.store.List(ns->id, tier, limit)] {
      for (const store::BlockRow& row : rows) WriteBlockRow(row, response->add_blocks());
    });
  });
  return call.get();
}

grpc::ServerUnaryReactor* AdminService::Evict(Context* context, const v1::EvictRequest* request,
                                              v1::EvictResponse* response) {
  absl::StatusOr<CallScope> entered = Enter(*context, CallKind::kControl);
  if (!entered.ok()) return UnaryCall::Refuse(entered.status());
  if (absl::Status status = CheckNamespaceName(request->namespace_()); !status.ok())
    return UnaryCall::Refuse(status);
  absl::StatusOr<tiers::TierKind> tier = ReadTier(request->tier());
  if (!tier.ok()) return UnaryCall::Refuse(tier.status());
  UnaryCallPtr call = UnaryCall::Start(parts_, *std::move(entered), Operation::kAdmin);
  call->PostToCore([&parts = parts_, call, response, name = request->namespace_(), tier = *tier] {
    absl::StatusOr<store::Store::OpenedNamespace> ns =
        FindForAdmin(parts.store, call->scope().tenant, name);
    if (!ns.ok()) return call->End(ns.status());
    call->End(absl::OkStatus(), [response, result = parts.store.Evict(ns->id, tier)] {
      response->set_blocks(result.blocks);
      response->set_skipped_blocks(result.skipped_blocks);
    });
  });
  return call.get();
}

grpc::ServerUnaryReactor* AdminService::Tenants(Context* context, const v1::TenantsRequest* request,
                                                v1::TenantsResponse* response) {
  absl::StatusOr<CallScope> entered = Enter(*context, CallKind::kControl);
  if (!entered.ok()) return UnaryCall::Refuse(entered.status());
  UnaryCallPtr call = UnaryCall::Start(parts_, *std::move(entered), Operation::kAdmin);
  call->PostToCore([&parts = parts_, call, response, tenant = request->tenant()] {
    std::vector<store::TenantRow> rows = TenantRows(parts.store, tenant);
    if (rows.empty() && !tenant.empty())
      return call->End(absl::NotFoundError(absl::StrCat("no tenant \"", tenant, "\" was named")));
    call->End(absl::OkStatus(), [&parts, response, rows = std::move(rows)] {
      for (const store::TenantRow& row : rows)
        WriteTenantRow(row, parts.gate.CountersOf(row.name), response->add_tenants());
    });
  });
  return call.get();
}

grpc::ServerUnaryReactor* AdminService::SetQuota(Context* context,
                                                 const v1::SetQuotaRequest* request,
                                                 v1::SetQuotaResponse* response) {
  absl::StatusOr<CallScope> entered = Enter(*context, CallKind::kControl);
  if (!entered.ok()) return UnaryCall::Refuse(entered.status());
  if (absl::Status status = CheckTenantName(request->tenant()); !status.ok())
    return UnaryCall::Refuse(status);
  absl::StatusOr<tiers::TierKind> tier = ReadTier(request->tier());
  if (!tier.ok()) return UnaryCall::Refuse(tier.status());
  UnaryCallPtr call = UnaryCall::Start(parts_, *std::move(entered), Operation::kAdmin);
  call->PostToCore([&parts = parts_, call, response, tenant = request->tenant(), tier = *tier,
                    bytes = request->bytes()] {
    parts.store.SetQuota(
        tenant, tier, bytes, store::QuotaLife::kDurable,
        [&parts, call, response, tenant](absl::Status status) {
          call->End(std::move(status), [&parts, response, rows = TenantRows(parts.store, tenant),
                                        is_durable = parts.store.keeps_metadata()] {
            WriteTenantRow(rows.front(), parts.gate.CountersOf(rows.front().name),
                           response->mutable_tenant());
            response->set_is_durable(is_durable);
          });
        });
  });
  return call.get();
}

grpc::ServerWriteReactor<v1::VerifyResponse>* AdminService::Verify(
    Context* context, const v1::VerifyRequest* request) {
  return VerifyCall::Start(parts_, Enter(*context, CallKind::kBulk), *request);
}

grpc::ServerWriteReactor<v1::DrainResponse>* AdminService::Drain(Context* context,
                                                                 const v1::DrainRequest*) {
  return DrainCall::Start(parts_, facts_, Enter(*context, CallKind::kBulk));
}

grpc::ServerUnaryReactor* AdminService::Resume(Context* context, const v1::ResumeRequest*,
                                               v1::ResumeResponse* response) {
  absl::StatusOr<CallScope> entered = Enter(*context, CallKind::kControl);
  if (!entered.ok()) return UnaryCall::Refuse(entered.status());
  UnaryCallPtr call = UnaryCall::Start(parts_, *std::move(entered), Operation::kAdmin);
  call->PostToCore([&parts = parts_, &facts = facts_, call, response] {
    // Asked on the core: the drain of a stopping daemon comes after this flag is set.
    if (facts.is_stopping())
      return call->End(absl::FailedPreconditionError("the daemon is stopping"));
    const bool was_draining = parts.store.status().is_draining;
    parts.store.Resume();
    call->End(absl::OkStatus(), [&facts, response, was_draining] {
      facts.set_draining(false);
      response->set_was_draining(was_draining);
    });
  });
  return call.get();
}

}  // namespace kvstore::service
