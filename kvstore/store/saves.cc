#include "kvstore/store/saves.h"

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::store {
namespace {

// Blocks between bringing a table slot into the cache and reading it: each takes longer than that.
constexpr size_t kLookUpAhead = 4;

}  // namespace

Saves::Saves(const StoreOptions& options, Copies& copies, Room& room, NamespaceTable& namespaces,
             SessionTable& sessions, Executor& executor, const Clock& clock)
    : options_(options),
      copies_(copies),
      room_(room),
      namespaces_(namespaces),
      sessions_(sessions),
      executor_(executor),
      clock_(clock) {}

absl::StatusOr<NodeId> Saves::FindParent(NamespaceId ns, const std::optional<BlockHash>& parent,
                                         uint32_t first_block_index) const {
  if (parent.has_value() != (first_block_index > 0)) {
    return absl::InvalidArgumentError(
        "a parent hash is given exactly if first_block_index is above 0");
  }
  if (!parent) return index::kNoNode;
  const NodeId id = copies_.index().Find(ns, *parent);
  if (id == index::kNoNode || !copies_.index().node(id).copies.HasAny()) {
    return absl::FailedPreconditionError(
        "the parent block is neither stored nor being written; match again");
  }
  if (copies_.index().node(id).block_index + 1 != first_block_index) {
    return absl::InvalidArgumentError(
        absl::StrCat("the parent is block ", copies_.index().node(id).block_index,
                     ", so first_block_index is not ", first_block_index));
  }
  return id;
}

// A page in DRAM is of use only for a block that is stored nowhere; one in the GPU tier also for a
// block that lies colder.
ReserveState Saves::StateOf(NodeId id, TierKind tier) const {
  if (copies_.state(id, tier) == CopyState::kWriting) return ReserveState::kBeingWritten;
  if (tier == TierKind::kGpu ? copies_.IsResident(id, tier) : copies_.index().node(id).IsResident())
    return ReserveState::kExists;
  return ReserveState::kReserved;
}

absl::StatusOr<ReserveResult> Saves::Reserve(SessionId session_id, NamespaceId ns,
                                             std::optional<BlockHash> parent,
                                             uint32_t first_block_index,
                                             std::span<const BlockHash> hashes, TierKind tier) {
  Session* session = sessions_.Find(session_id);
  if (session->reserved_blocks + hashes.size() > options_.reserved_blocks_per_session_max) {
    return absl::ResourceExhaustedError(
        "the session has too many reserved blocks (limits.reserved_blocks_per_session_max)");
  }
  size_t& reserved_of_tenant = copies_.tenants().tenant(session->tenant).reserved_blocks;
  if (reserved_of_tenant + hashes.size() > options_.reserved_blocks_per_tenant_max)
    return absl::ResourceExhaustedError("the tenant has too many reserved blocks");
  ASSIGN_OR_RETURN(NodeId parent_node, FindParent(ns, parent, first_block_index));
  const ReservationId id(last_id_ + 1);
  ReserveResult result;
  result.blocks.resize(hashes.size());
  Reservation r{.session = session_id,
                .ns = ns,
                .tier = tier,
                .nodes = {},
                .expires = clock_.Now() + options_.lease_time};
  r.nodes.assign(hashes.size(), index::kNoNode);
  const PoolId pool = namespaces_.epoch(ns).ns->pool;
  StoreCounters& counters = copies_.store_counters();
  // The chain is held while it is built: making room must not evict the parents of blocks to come.
  std::vector<NodeId> chain;
  chain.reserve(hashes.size() + 1);
  const auto hold = [&](NodeId node) {
    copies_.Hold(node);
    chain.push_back(node);
  };
  if (parent_node != index::kNoNode && copies_.CanHold(parent_node)) hold(parent_node);
  for (size_t i = 0; i < hashes.size(); ++i) {
    if (i + kLookUpAhead < hashes.size())
      copies_.index().PrefetchFind(ns, hashes[i + kLookUpAhead]);
    ReserveResult::Block& block = result.blocks[i];
    const uint32_t block_index = first_block_index + static_cast<uint32_t>(i);
    NodeId node = copies_.index().Find(ns, hashes[i]);
    const bool is_known = node != index::kNoNode;
    if (is_known && copies_.index().node(node).block_index != block_index) {
      block.state = ReserveState::kNoSpace;  // one hash at two positions: not a chain
    } else if (is_known ? !copies_.CanHold(node)
                        : copies_.index().num_nodes() >= options_.blocks_max) {
      block.state = ReserveState::kNoSpace;
    } else {
      block.state = is_known ? StateOf(node, tier) : ReserveState::kReserved;
    }
    if (is_known && block.state != ReserveState::kNoSpace) hold(node);
    if (block.state == ReserveState::kReserved) {
      const absl::StatusOr<PageId> page = room_.TakePage(tier, pool);
      if (page.ok()) {
        // Links a known one to its parent, too: it may have been a ghost of recovery.
        node = is_known ? copies_.index().FindOrInsert(ns, hashes[i], parent_node, block_index)
                        : copies_.index().Insert(ns, hashes[i], parent_node, block_index);
        copies_.BeginWrite(node, tier, *page);
        block.location = copies_.Locate(node, tier);
        block.location.page_checksum = 0;
        r.nodes[i] = node;
        ++r.num_open;
        if (!is_known) hold(node);
      } else {
        block.state = ReserveState::kNoSpace;
      }
    }
    if (block.state == ReserveState::kNoSpace) {
      for (size_t j = i; j < hashes.size(); ++j) result.blocks[j].state = ReserveState::kNoSpace;
      counters.no_space_blocks += hashes.size() - i;
      break;
    }
    parent_node = node;
  }
  for (auto held = chain.rbegin(); held != chain.rend(); ++held) copies_.Unhold(*held);
  if (r.num_open == 0) return result;
  counters.reserved_blocks += r.num_open;
  session->reserved_blocks += r.num_open;
  reserved_of_tenant += r.num_open;
  session->reservations.insert(id);
  last_id_ = id.value();
  result.reservation = id;
  expiries_.emplace_back(r.expires, id);
  reservations_.emplace(id, std::move(r));
  ArmExpiry();
  return result;
}

absl::Status Saves::CheckCommit(const Reservation& r, std::span<const CommitBlock> blocks) const {
  if (!namespaces_.epoch(r.ns).is_current) return absl::AbortedError("the namespace was cleared");
  if (copies_.tier(r.tier)->state() == tiers::TierState::kFailed)
    return absl::AbortedError("the tier has failed, and with it what was written to it");
  for (const CommitBlock& block : blocks) {
    if (block.block >= r.nodes.size() || r.nodes[block.block] == index::kNoNode) {
      return absl::InvalidArgumentError(
          absl::StrCat("block ", block.block, " is not reserved, or is committed already"));
    }
    const index::Node& node = copies_.index().node(r.nodes[block.block]);
    if (node.IsResident() && node.page_checksum != block.page_checksum) {
      return absl::DataLossError(
          absl::StrCat("block ", block.block, " differs from the copy that is stored"));
    }
  }
  return absl::OkStatus();
}

absl::Status Saves::Commit(SessionId session, ReservationId id,
                           std::span<const CommitBlock> blocks) {
  auto it = reservations_.find(id);
  if (it == reservations_.end() || it->second.session != session)
    return absl::NotFoundError("no such reservation; it may have expired");
  Reservation& r = it->second;
  if (absl::Status s = CheckCommit(r, blocks); !s.ok()) {
    if (absl::IsAborted(s)) End(id);
    return s;
  }
  std::vector<NodeId> published;
  published.reserve(blocks.size());
  const TierKind tier = r.tier;
  for (const CommitBlock& block : blocks) {
    const NodeId node = r.nodes[block.block];
    if (node == index::kNoNode) continue;  // named twice in this call
    r.nodes[block.block] = index::kNoNode;
    --r.num_open;
    copies_.index().node(node).page_checksum = block.page_checksum;
    copies_.Publish(node, tier, Recency::kNewest);
    copies_.Hold(node);  // until all are told: making room for copies must not evict them
    published.push_back(node);
  }
  // Tail first: a parent is never older than its children.
  const uint32_t now = copies_.Ticks();
  for (auto node = published.rbegin(); node != published.rend(); ++node) copies_.Touch(*node, now);
  copies_.store_counters().committed_blocks += published.size();
  sessions_.Find(session)->reserved_blocks -= published.size();
  copies_.tenants().tenant(sessions_.Find(session)->tenant).reserved_blocks -= published.size();
  if (r.num_open == 0) End(id);
  for (const NodeId node : published) on_published_(node, tier);
  for (auto node = published.rbegin(); node != published.rend(); ++node) copies_.Unhold(*node);
  return absl::OkStatus();
}

absl::Status Saves::Abort(SessionId session, ReservationId id) {
  auto it = reservations_.find(id);
  if (it == reservations_.end() || it->second.session != session)
    return absl::NotFoundError("no such reservation; it may have expired");
  End(id);
  return absl::OkStatus();
}

void Saves::AbortAll(Session* session) {
  while (!session->reservations.empty()) End(*session->reservations.begin());
}

void Saves::End(ReservationId id) {
  auto it = reservations_.find(id);
  const Reservation r = std::move(it->second);
  reservations_.erase(it);
  Session* session = sessions_.Find(r.session);
  session->reservations.erase(id);
  session->reserved_blocks -= r.num_open;
  copies_.tenants().tenant(session->tenant).reserved_blocks -= r.num_open;
  copies_.store_counters().aborted_blocks += r.num_open;
  for (auto node = r.nodes.rbegin(); node != r.nodes.rend(); ++node) {
    if (*node != index::kNoNode) copies_.AbandonWrite(*node, r.tier);
  }
}

void Saves::ArmExpiry() {
  if (is_expiry_armed_ || expiries_.empty()) return;
  is_expiry_armed_ = true;
  executor_.PostAt(expiries_.front().first, [this] { Expire(); });
}

void Saves::Expire() {
  is_expiry_armed_ = false;
  while (!expiries_.empty() && expiries_.front().first <= clock_.Now()) {
    const ReservationId id = expiries_.front().second;
    expiries_.pop_front();
    if (!reservations_.contains(id)) continue;
    ++copies_.store_counters().reservations_expired;
    End(id);
  }
  ArmExpiry();
}

}  // namespace kvstore::store
