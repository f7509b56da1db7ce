#include "kvstore/store/loads.h"

#include <algorithm>
#include <optional>

#include "absl/container/flat_hash_set.h"

namespace kvstore::store {
namespace {

// Of one block. Below what its counter of holds can count: moves, saves and checks hold it, too.
constexpr uint16_t kLeaseHoldsMax = 65000;

}  // namespace

void AcquireUpdate::KeepLatest() {
  absl::flat_hash_set<uint32_t> told;
  std::ranges::reverse(ready);
  std::erase_if(ready, [&told](const Ready& of) { return !told.insert(of.block).second; });
  std::ranges::reverse(ready);
}

Loads::Loads(const StoreOptions& options, Copies& copies, Moves& moves, SessionTable& sessions,
             Executor& executor, const Clock& clock)
    : options_(options),
      copies_(copies),
      moves_(moves),
      sessions_(sessions),
      executor_(executor),
      clock_(clock) {}

MatchResult Loads::Match(NamespaceId ns, std::span<const BlockHash> hashes) const {
  std::vector<NodeId> nodes;
  copies_.index().MatchPrefix(ns, hashes, &nodes);
  MatchResult result{.matched_blocks = static_cast<uint32_t>(nodes.size())};
  for (const NodeId id : nodes) {
    for (const TierKind kind : kAllTiers) {
      if (!copies_.IsResident(id, kind)) continue;
      ++result.by_tier[Pos(kind)];
      break;
    }
  }
  return result;
}

std::optional<TierKind> Loads::ReadableTier(NodeId id, const AcquireOptions& options) const {
  if (options.can_read_gpu && copies_.IsResident(id, TierKind::kGpu) &&
      copies_.tier(TierKind::kGpu)->state() != tiers::TierState::kFailed) {
    return TierKind::kGpu;
  }
  if (copies_.IsResident(id, TierKind::kDram)) return TierKind::kDram;
  return std::nullopt;
}

std::optional<TierKind> Loads::SourceTier(NodeId id) const {
  for (const TierKind kind : {TierKind::kGpu, TierKind::kNvme}) {
    if (copies_.IsResident(id, kind) && copies_.tier(kind)->state() != tiers::TierState::kFailed)
      return kind;
  }
  return std::nullopt;
}

void Loads::Acquire(SessionId session_id, NamespaceId ns, std::span<const BlockHash> hashes,
                    const AcquireOptions& options, Observer on_update) {
  AcquireUpdate first{.is_first = true};
  Session* session = sessions_.Find(session_id);
  if (session->leases.size() >= options_.leases_per_session_max) {
    first.is_last = true;
    first.status = absl::ResourceExhaustedError(
        "the session holds too many leases (limits.leases_per_session_max)");
    return on_update(first);
  }
  std::vector<NodeId> nodes;
  nodes.reserve(hashes.size());
  copies_.index().MatchPrefix(ns, hashes, &nodes);
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (copies_.index().node(nodes[i]).holds >= kLeaseHoldsMax) nodes.resize(i);
  }
  if (options.must_be_readable && !std::ranges::all_of(nodes, [&](NodeId node) {
        return ReadableTier(node, options).has_value();
      })) {
    first.is_last = true;
    first.status = absl::FailedPreconditionError("a block has to come up first");
    return on_update(first);
  }
  StoreCounters& counters = copies_.store_counters();
  ++counters.acquires;
  counters.requested_blocks += hashes.size();
  counters.matched_blocks += nodes.size();
  if (nodes.empty()) {
    first.is_last = true;
    return on_update(first);
  }

  size_t& leased_blocks = copies_.tenants().tenant(session->tenant).leased_blocks;
  if (leased_blocks + nodes.size() > options_.leased_blocks_per_tenant_max) {
    first.is_last = true;
    first.status = absl::ResourceExhaustedError("the tenant holds too many leased blocks");
    return on_update(first);
  }
  leased_blocks += nodes.size();
  const LeaseId id(++last_id_);
  session->leases.insert(id);
  Lease& lease = leases_[id];
  lease.session = session_id;
  lease.matched = static_cast<uint32_t>(nodes.size());
  lease.options = options;
  lease.expires = clock_.Now() + options_.lease_time;
  lease.on_update = std::move(on_update);
  lease.read_from.assign(nodes.size(), TierKind::kDram);
  lease.is_ready.assign(nodes.size(), false);
  lease.nodes = std::move(nodes);
  lease.is_flush_posted = true;  // what becomes ready meanwhile goes into the first update
  lease.ready.reserve(lease.nodes.size());
  for (const NodeId node : lease.nodes) copies_.Hold(node);
  // Tail first: a parent is never older than its children.
  const uint32_t now = copies_.Ticks();
  for (auto node = lease.nodes.rbegin(); node != lease.nodes.rend(); ++node) {
    copies_.Touch(*node, now);
    uint16_t& hits = copies_.index().node(*node).hits;
    hits += hits < UINT16_MAX;
  }
  for (uint32_t block = 0; block < lease.matched; ++block) {
    if (const auto tier = ReadableTier(lease.nodes[block], options)) {
      lease.read_from[block] = *tier;
      lease.is_ready[block] = true;
      ++copies_.counters(*tier).hit_pages;
      lease.ready.push_back(
          {.block = block, .from = *tier, .location = copies_.Locate(lease.nodes[block], *tier)});
    } else {
      ++lease.pending;
      Fetch(id, block);
    }
  }
  expiries_.emplace_back(lease.expires, id);
  ArmExpiry();

  first.lease = id;
  first.matched_blocks = lease.matched;
  first.ready = std::exchange(lease.ready, {});
  if (options.by_slices) first.KeepLatest();
  first.status = std::exchange(lease.lost, absl::OkStatus());
  first.is_last = lease.pending == 0;
  lease.is_flush_posted = false;
  const Observer observer =
      first.is_last ? std::exchange(lease.on_update, nullptr) : lease.on_update;
  observer(first);
}

void Loads::Fetch(LeaseId id, uint32_t block) {
  const NodeId node = leases_.find(id)->second.nodes[block];
  const std::optional<TierKind> src = SourceTier(node);
  if (!src) {
    return OnFetched(id, block, TierKind::kDram,
                     absl::UnavailableError("no tier that answers has the block"));
  }
  Moves::OnSlices on_slices;
  if (leases_.find(id)->second.options.by_slices) {
    on_slices = [this, id, block, from = *src](uint32_t ready_slices) {
      OnSlices(id, block, from, ready_slices);
    };
  }
  moves_.Start(
      node, *src, TierKind::kDram, MovePurpose::kLoad,
      [this, id, block, from = *src](absl::Status status) { OnFetched(id, block, from, status); },
      std::move(on_slices));
}

void Loads::OnSlices(LeaseId id, uint32_t block, TierKind from, uint32_t ready_slices) {
  auto it = leases_.find(id);
  if (it == leases_.end()) return;  // released meanwhile
  Lease& lease = it->second;
  const NodeId node = lease.nodes[block];
  // All of them: the end of the move tells it, when the page is published.
  if (block >= lease.matched || ready_slices >= copies_.IdentityOf(node).shape.num_slices) return;
  lease.ready.push_back({.block = block,
                         .from = from,
                         .location = copies_.Locate(node, TierKind::kDram),
                         .leading_slices = ready_slices});
  PostFlush(id, &lease);
}

void Loads::OnFetched(LeaseId id, uint32_t block, TierKind from, const absl::Status& status) {
  auto it = leases_.find(id);
  if (it == leases_.end()) return;  // released meanwhile
  Lease& lease = it->second;
  if (block >= lease.matched) return;
  const NodeId node = lease.nodes[block];
  if (status.ok()) {
    --lease.pending;
    lease.is_ready[block] = true;
    ++copies_.counters(from).hit_pages;
    lease.ready.push_back(
        {.block = block, .from = from, .location = copies_.Locate(node, TierKind::kDram)});
  } else if (!copies_.IsResident(node, from) && SourceTier(node)) {
    return Fetch(id, block);  // that copy is gone; another tier has one
  } else {
    Truncate(&lease, block, status);
  }
  PostFlush(id, &lease);
}

void Loads::Truncate(Lease* lease, uint32_t block, const absl::Status& why) {
  // Blocks behind it are of no use any more: what is pending among them will be ignored when it
  // arrives.
  lease->matched = block;
  lease->pending = static_cast<uint32_t>(
      std::count(lease->is_ready.begin(), lease->is_ready.begin() + block, false));
  lease->lost = why;
  ++copies_.store_counters().truncated_loads;
}

// Completions that arrive together are told together.
void Loads::PostFlush(LeaseId id, Lease* lease) {
  if (lease->is_flush_posted) return;
  lease->is_flush_posted = true;
  executor_.Post([this, id] { Flush(id); });
}

void Loads::Flush(LeaseId id) {
  auto it = leases_.find(id);
  if (it == leases_.end() || !it->second.on_update) return;
  Lease& lease = it->second;
  lease.is_flush_posted = false;
  std::erase_if(lease.ready, [&](const auto& ready) { return ready.block >= lease.matched; });
  AcquireUpdate update{.is_last = lease.pending == 0,
                       .lease = id,
                       .matched_blocks = lease.matched,
                       .ready = std::exchange(lease.ready, {}),
                       .status = std::exchange(lease.lost, absl::OkStatus())};
  if (lease.options.by_slices) update.KeepLatest();
  const Observer observer =
      update.is_last ? std::exchange(lease.on_update, nullptr) : lease.on_update;
  observer(update);
}

absl::Status Loads::Release(SessionId session, LeaseId id,
                            std::vector<std::pair<NodeId, TierKind>>* read_from) {
  auto it = leases_.find(id);
  if (it == leases_.end() || it->second.session != session)
    return absl::NotFoundError("no such lease; it may have expired");
  if (read_from != nullptr) {
    const Lease& lease = it->second;
    for (size_t i = 0; i < lease.nodes.size(); ++i)
      read_from->emplace_back(lease.nodes[i], lease.read_from[i]);
  }
  End(id);
  return absl::OkStatus();
}

absl::Status Loads::Renew(SessionId session, LeaseId id) {
  auto it = leases_.find(id);
  if (it == leases_.end() || it->second.session != session)
    return absl::NotFoundError("no such lease; it may have expired");
  it->second.expires = clock_.Now() + options_.lease_time;
  return absl::OkStatus();
}

void Loads::ReleaseAll(Session* session) {
  while (!session->leases.empty()) End(*session->leases.begin());
}

void Loads::End(LeaseId id) {
  auto it = leases_.find(id);
  const Lease lease = std::move(it->second);
  leases_.erase(it);
  Session* session = sessions_.Find(lease.session);
  session->leases.erase(id);
  copies_.tenants().tenant(session->tenant).leased_blocks -= lease.nodes.size();
  // Tail first, so that blocks of a cleared namespace go leaf by leaf.
  for (auto node = lease.nodes.rbegin(); node != lease.nodes.rend(); ++node) copies_.Unhold(*node);
}

void Loads::ArmExpiry() {
  if (is_expiry_armed_ || expiries_.empty()) return;
  is_expiry_armed_ = true;
  executor_.PostAt(expiries_.front().first, [this] { Expire(); });
}

void Loads::Expire() {
  is_expiry_armed_ = false;
  const absl::Time now = clock_.Now();
  while (!expiries_.empty() && expiries_.front().first <= now) {
    const LeaseId id = expiries_.front().second;
    expiries_.pop_front();
    auto it = leases_.find(id);
    if (it == leases_.end()) continue;
    if (it->second.expires > now) {
      expiries_.emplace_back(it->second.expires, id);
      continue;
    }
    ++copies_.store_counters().leases_expired;
    const Observer observer = std::move(it->second.on_update);
    End(id);
    if (observer)
      observer(
          {.is_last = true, .lease = id, .status = absl::AbortedError("the lease has expired")});
  }
  ArmExpiry();
}

}  // namespace kvstore::store
