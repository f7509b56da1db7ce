#include "kvstore/store/store.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/store/copies.h"
#include "kvstore/store/drain.h"
#include "kvstore/store/durable_tiers.h"
#include "kvstore/store/loads.h"
#include "kvstore/store/moves.h"
#include "kvstore/store/namespace_table.h"
#include "kvstore/store/recovery.h"
#include "kvstore/store/room.h"
#include "kvstore/store/saves.h"
#include "kvstore/store/sessions.h"
#include "kvstore/store/sweep.h"
#include "kvstore/store/tenant_admin.h"
#include "kvstore/store/tier_loss.h"
#include "kvstore/store/verification.h"
#include "kvstore/store/write_behind.h"

namespace kvstore::store {
namespace {

absl::Status NoSession() { return absl::NotFoundError("no such session; it has ended"); }
std::array<uint64_t, tiers::kNumTierKinds> CapacitiesOf(const Store::Tiers& tiers) {
  std::array<uint64_t, tiers::kNumTierKinds> bytes{};
  const tiers::Tier* const all[] = {tiers.gpu, tiers.dram, tiers.nvme};
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = all[i] == nullptr ? 0 : all[i]->capacity_bytes();
  return bytes;
}

absl::Status NoNamespace() { return absl::NotFoundError("no such namespace; open it first"); }

}  // namespace

absl::Status StoreOptions::Validate() const {
  if (blocks_max > index::HashTable::kIdMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("blocks_max is too large; valid: at most ", index::HashTable::kIdMax));
  }
  if (lease_time < absl::Seconds(1) || lease_time > absl::Hours(1)) {
    return absl::InvalidArgumentError("limits.lease_time is not valid; valid: 1s to 1h");
  }
  if (move_deadline < absl::Milliseconds(1) || move_deadline > absl::Minutes(5)) {
    return absl::InvalidArgumentError("limits.move_deadline is not valid; valid: 1ms to 5m");
  }
  const std::pair<const char*, size_t> counts[] = {
      {"blocks_max", blocks_max},
      {"server.sessions_max", sessions_max},
      {"limits.namespaces_max", namespaces_max},
      {"limits.blocks_per_call_max", blocks_per_call_max},
      {"limits.leases_per_session_max", leases_per_session_max},
      {"limits.reserved_blocks_per_session_max", reserved_blocks_per_session_max},
  };
  for (const auto& [name, value] : counts) {
    if (value == 0)
      return absl::InvalidArgumentError(absl::StrCat(name, " is 0; valid: 1 or more"));
  }
  return policy.Validate();
}

// The rooms of the core, wired together. Everything is confined to the executor.
struct Store::State {
  State(const StoreOptions& o, const Store::Tiers& t, Executor& e, const Clock& c)
      : options(o),
        tiers(t),
        executor(e),
        tenants(o.tenants_max, CapacitiesOf(t)),
        namespaces(o.namespaces_max, tenants),
        copies(t, namespaces, tenants, c, std::random_device{}()),
        room(copies, e, c),
        moves(copies, room, e, c, o.move_deadline),
        write_behind(options.policy, copies, moves, e, c),
        sessions(o.sessions_max, tenants),
        loads(options, copies, moves, sessions, e, c),
        saves(options, copies, room, namespaces, sessions, e, c),
        verification(copies, room, moves, e, c, o.move_deadline),
        drain(copies, moves, write_behind, e),
        durable(t),
        tenant_admin(tenants, copies, room, moves, sessions, loads, durable),
        recovery(o.blocks_max, namespaces, copies, tenant_admin, durable),
        sweep(copies, namespaces, e, c),
        tier_loss(copies, e, c),
        clock(c) {
    copies.set_on_dirty_victim(
        [this](NodeId id, TierKind kind) { return write_behind.Start(id, kind); });
    auto on_published = [this](NodeId id, TierKind kind) { write_behind.OnPublished(id, kind); };
    moves.set_on_published(on_published);
    saves.set_on_published(on_published);
    moves.set_on_written([this] { drain.OnWritten(); });
    recovery.set_on_lacks_colder_copy(
        [this](NodeId id, TierKind kind) { write_behind.OnRecovered(id, kind); });
    for (const TierKind kind : kAllTiers) {
      if (copies.Has(kind)) copies.tier(kind)->set_on_lost([this, kind] { tier_loss.Start(kind); });
    }
  }

  // The namespace with this id, if it exists and is the session's tenant's. The epoch may be old.
  absl::Status CheckCaller(SessionId session_id, NamespaceId ns) {
    const Session* session = sessions.Find(session_id);
    if (session == nullptr) return NoSession();
    const Epoch* epoch = namespaces.FindEpoch(ns);
    if (epoch == nullptr || tenants.tenant_of(epoch->ns->pool) != session->tenant)
      return NoNamespace();
    if (!epoch->is_current)
      return absl::AbortedError("the namespace was cleared; look it up again");
    return absl::OkStatus();
  }

  const StoreOptions options;
  const Store::Tiers tiers;
  Executor& executor;
  TenantTable tenants;
  NamespaceTable namespaces;
  Copies copies;
  Room room;
  Moves moves;
  WriteBehind write_behind;
  SessionTable sessions;
  Loads loads;
  Saves saves;
  Verification verification;
  store::Drain drain;
  DurableTiers durable;
  TenantAdmin tenant_admin;
  Recovery recovery;
  Sweep sweep;
  TierLoss tier_loss;
  const Clock& clock;
};

Store::Store(const StoreOptions& options, Tiers tiers, Executor& executor, const Clock& clock)
    : state_(std::make_unique<State>(options, tiers, executor, clock)) {}

Store::~Store() = default;

void Store::Start(absl::AnyInvocable<void(absl::Status)> on_finished) {
  state_->recovery.Start(std::move(on_finished));
}

// --- Namespaces

namespace {

Store::OpenedNamespace Opened(const Namespace& ns) {
  return {.id = ns.id, .fingerprint = ns.fingerprint, .spec = ns.spec};
}

}  // namespace

void Store::OpenNamespace(const NamespaceSpec& spec, std::string name,
                          absl::AnyInvocable<void(absl::StatusOr<OpenedNamespace>)> done) {
  state_->recovery.WhenNamespacesAreKnown(
      [this, spec, name = std::move(name), done = std::move(done)]() mutable {
        OpenKnownNamespace(spec, std::move(name), std::move(done));
      });
}

void Store::OpenKnownNamespace(const NamespaceSpec& spec, std::string name,
                               absl::AnyInvocable<void(absl::StatusOr<OpenedNamespace>)> done) {
  const std::string called = name;
  const absl::StatusOr<Namespace*> ns = state_->namespaces.Open(spec, std::move(name));
  if (!ns.ok()) return done(ns.status());
  if (absl::Status s = state_->copies.OpenPools(**ns); !s.ok()) return done(s);
  state_->durable.NameNamespace((*ns)->fingerprint, called);
  if ((*ns)->is_kept || state_->durable.empty()) return done(Opened(**ns));
  state_->durable.SaveMetadata(
      absl::StrCat(std::string(kNamespaceKeyPrefix), (*ns)->fingerprint.Hex()),
      NamespaceTable::EncodeRecord(**ns),
      [this, opened = Opened(**ns), done = std::move(done)](absl::Status status) mutable {
        // A disk that does not answer must not keep engines from starting: the tier writes the
        // record before any page when it is back.
        if (!status.ok() && !absl::IsUnavailable(status)) return done(status);
        if (Namespace* kept = state_->namespaces.Find(opened.fingerprint)) kept->is_kept = true;
        done(opened);
      });
}

absl::StatusOr<Store::OpenedNamespace> Store::FindNamespace(std::string_view tenant,
                                                            std::string_view name) const {
  const Namespace* ns = state_->namespaces.FindByName(tenant, name);
  if (ns != nullptr) return Opened(*ns);
  for (const Namespace* candidate : state_->namespaces.All()) {
    if (candidate->spec.tenant == tenant && candidate->fingerprint.Hex() == name)
      return Opened(*candidate);
  }
  return absl::NotFoundError(
      absl::StrCat("no namespace \"", std::string(name), "\"; open it first"));
}

absl::StatusOr<Store::OpenedNamespace> Store::FindNamespace(std::string_view tenant,
                                                            const Fingerprint& fingerprint) const {
  const Namespace* ns = std::as_const(state_->namespaces).Find(fingerprint);
  if (ns == nullptr || ns->spec.tenant != tenant) return NoNamespace();
  return Opened(*ns);
}

std::vector<NamespaceRow> Store::ListNamespaces() const {
  std::vector<NamespaceRow> rows;
  for (const Namespace* ns : state_->namespaces.All()) {
    NamespaceRow row{.name = ns->name,
                     .fingerprint = ns->fingerprint,
                     .spec = ns->spec,
                     .epoch = ns->epoch,
                     .is_open = ns->is_open};
    for (const TierKind kind : kAllTiers)
      row.bytes_by_tier[Pos(kind)] = state_->copies.BytesIn(ns->id, kind);
    rows.push_back(std::move(row));
  }
  return rows;
}

void Store::Clear(std::string_view tenant, const Fingerprint& fingerprint, tiers::Tier::Done done) {
  state_->recovery.WhenNamespacesAreKnown(
      [this, tenant = std::string(tenant), fingerprint, done = std::move(done)]() mutable {
        ClearKnown(tenant, fingerprint, std::move(done));
      });
}

void Store::ClearKnown(std::string_view tenant, const Fingerprint& fingerprint,
                       tiers::Tier::Done done) {
  Namespace* ns = state_->namespaces.Find(fingerprint);
  if (ns == nullptr || ns->spec.tenant != tenant) return done(NoNamespace());
  if (absl::Status s = state_->namespaces.Advance(ns); !s.ok()) return done(s);
  state_->sweep.Start();
  state_->durable.SaveMetadata(absl::StrCat(std::string(kNamespaceKeyPrefix), fingerprint.Hex()),
                               NamespaceTable::EncodeRecord(*ns),
                               [durable = &state_->durable, fingerprint, epoch = ns->epoch,
                                done = std::move(done)](absl::Status saved) mutable {
                                 // Whether or not the new epoch could be saved, the old ones' keys go.
                                 durable->EraseEpochs(
                                     fingerprint, epoch,
                                     [saved, done = std::move(done)](absl::Status erased) mutable {
                                       saved.Update(erased);
                                       done(std::move(saved));
                                     });
                               });
}

// --- Sessions

absl::StatusOr<SessionId> Store::OpenSession(std::string_view tenant) {
  ASSIGN_OR_RETURN(const TenantId id, state_->tenants.FindOrAdd(tenant));
  return state_->sessions.Open(id);
}

void Store::CloseSession(SessionId id) {
  Session* session = state_->sessions.Find(id);
  if (session == nullptr) return;
  state_->loads.ReleaseAll(session);
  state_->saves.AbortAll(session);
  state_->sessions.Erase(id);
  ++state_->copies.store_counters().sessions_ended;
}

// --- Load

MatchResult Store::Match(NamespaceId ns, std::span<const BlockHash> hashes) const {
  return state_->loads.Match(ns, hashes);
}

void Store::Acquire(SessionId session, NamespaceId ns, std::span<const BlockHash> hashes,
                    const AcquireOptions& options,
                    std::function<void(const AcquireUpdate&)> on_update) {
  absl::Status status = state_->CheckCaller(session, ns);
  if (status.ok() && hashes.size() > state_->options.blocks_per_call_max) {
    status = absl::InvalidArgumentError(
        absl::StrCat("more than ", state_->options.blocks_per_call_max, " blocks in one call"));
  }
  if (!status.ok())
    return on_update({.is_first = true, .is_last = true, .status = std::move(status)});
  state_->loads.Acquire(session, ns, hashes, options, std::move(on_update));
}

absl::Status Store::Release(SessionId session, LeaseId lease,
                            std::span<const uint32_t> bad_blocks) {
  if (bad_blocks.empty()) return state_->loads.Release(session, lease, nullptr);
  std::vector<std::pair<NodeId, TierKind>> read_from;
  RETURN_IF_ERROR(state_->loads.Release(session, lease, &read_from));
  for (const uint32_t block : bad_blocks) {
    if (block >= read_from.size()) continue;
    const auto [id, kind] = read_from[block];
    ++state_->copies.store_counters().reported_bad_pages;
    const index::PrefixIndex& index = state_->copies.index();
    if (index.IsLive(id) && state_->copies.IsResident(id, kind))
      state_->verification.Check(id, kind, [](absl::Status) {});
  }
  return absl::OkStatus();
}

absl::Status Store::Renew(SessionId session, LeaseId lease) {
  return state_->loads.Renew(session, lease);
}

// --- Save

absl::StatusOr<ReserveResult> Store::Reserve(SessionId session, NamespaceId ns,
                                             std::optional<BlockHash> parent,
                                             uint32_t first_block_index,
                                             std::span<const BlockHash> hashes, TierKind tier) {
  RETURN_IF_ERROR(state_->CheckCaller(session, ns));
  if (state_->drain.is_on())
    return absl::UnavailableError("the daemon is draining and takes no saves");
  if (tier == TierKind::kNvme || !state_->copies.Has(tier)) {
    return absl::InvalidArgumentError(
        "pages can be reserved in dram, and in gpu where the daemon has that tier");
  }
  if (hashes.size() > state_->options.blocks_per_call_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("more than ", state_->options.blocks_per_call_max, " blocks in one call"));
  }
  return state_->saves.Reserve(session, ns, parent, first_block_index, hashes, tier);
}

absl::Status Store::Commit(SessionId session, ReservationId reservation,
                           std::span<const CommitBlock> blocks) {
  return state_->saves.Commit(session, reservation, blocks);
}

absl::Status Store::Abort(SessionId session, ReservationId reservation) {
  return state_->saves.Abort(session, reservation);
}

// --- Administration

StoreStatus Store::status() const {
  StoreStatus status;
  const State& s = *state_;
  for (const TierKind kind : kAllTiers) {
    const tiers::Tier* tier = s.copies.tier(kind);
    if (tier == nullptr) continue;
    status.tiers.push_back({.kind = kind,
                            .stats = tier->stats(),
                            .state = tier->state(),
                            .breaker = tier->breaker(),
                            .counters = s.copies.counters(kind),
                            .load_times = s.moves.load_times(kind),
                            .write_times = s.moves.write_times(kind),
                            .waiting_moves = s.moves.num_waiting(kind),
                            .degraded = tier->degraded()});
  }
  status.counters = s.copies.store_counters();
  status.sessions = state_->sessions.size();
  status.leases = s.loads.size();
  status.reservations = s.saves.size();
  status.namespaces = s.namespaces.size();
  status.blocks = s.copies.index().num_nodes();
  status.moves_in_flight = s.moves.size();
  status.is_recovering = s.recovery.is_running();
  status.is_draining = s.drain.is_on();
  return status;
}

bool Store::keeps_metadata() const { return !state_->durable.empty(); }

std::vector<TenantRow> Store::ListTenants() const { return state_->tenant_admin.List(); }

void Store::SetQuota(std::string_view tenant, TierKind tier, uint64_t bytes, QuotaLife life,
                     tiers::Tier::Done done) {
  state_->tenant_admin.SetQuota(tenant, tier, bytes, life, std::move(done));
}

std::vector<BlockRow> Store::List(NamespaceId ns, std::optional<TierKind> tier,
                                  size_t limit) const {
  const Copies& copies = state_->copies;
  std::vector<BlockRow> rows;
  const Epoch* epoch = state_->namespaces.FindEpoch(ns);
  if (epoch == nullptr) return rows;
  for (NodeId id = 0; id < copies.index().id_end() && rows.size() < limit; ++id) {
    if (!copies.index().IsLive(id)) continue;
    const index::Node& node = copies.index().node(id);
    if (node.ns != ns.value() || !node.IsResident() || (tier && !copies.IsResident(id, *tier)))
      continue;
    BlockRow row{.hash = node.hash,
                 .parent = {},
                 .block_index = node.block_index,
                 .bytes = epoch->ns->spec.shape.page_bytes()};
    if (node.parent != index::kNoNode) row.parent = copies.index().node(node.parent).hash;
    for (const TierKind kind : kAllTiers)
      row.resident[Pos(kind)] = copies.Has(kind) && copies.IsResident(id, kind);
    row.age = absl::Seconds((copies.Ticks() - node.touched_at) / Copies::kTicksPerSecond);
    row.hits = node.hits;
    row.leases = node.holds;
    rows.push_back(std::move(row));
  }
  return rows;
}

Store::EvictResult Store::Evict(NamespaceId ns, TierKind tier) {
  EvictResult result;
  Copies& copies = state_->copies;
  if (!copies.Has(tier)) return result;
  for (NodeId id = 0; id < copies.index().id_end(); ++id) {
    if (!copies.index().IsLive(id) || copies.index().node(id).ns != ns.value() ||
        !copies.IsResident(id, tier))
      continue;
    bool is_last = true;
    for (const TierKind other : kAllTiers)
      is_last &= other == tier || !copies.Has(other) || !copies.IsResident(id, other);
    if (is_last || copies.index().node(id).holds > 0) {
      ++result.skipped_blocks;
      continue;
    }
    copies.Drop(id, tier, DropReason::kEvicted);
    ++result.blocks;
  }
  return result;
}

void Store::Verify(std::optional<TierKind> tier, VerifyMode mode,
                   absl::AnyInvocable<void(absl::StatusOr<VerifyResult>)> done) {
  state_->verification.CheckAll(tier, mode, std::move(done));
}

void Store::Drain(absl::AnyInvocable<void(absl::StatusOr<DrainResult>)> done) {
  state_->drain.Start(std::move(done));
}

DrainResult Store::drain_progress() const { return state_->drain.progress(); }

void Store::Resume() { state_->drain.Cancel(); }

absl::Status Store::CheckInvariants() const {
  RETURN_IF_ERROR(state_->copies.CheckInvariants());
  return state_->tenant_admin.CheckInvariants();
}

}  // namespace kvstore::store
