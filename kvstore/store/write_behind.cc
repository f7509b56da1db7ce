#include "kvstore/store/write_behind.h"

#include <algorithm>
#include <vector>

namespace kvstore::store {
namespace {

// A disk that is back gets 2,560 blocks a second of what it missed: at 1 MiB more than it writes,
// and a disk that still fails is asked this often only.
constexpr absl::Duration kRetryPause = absl::Milliseconds(100);
constexpr size_t kBlocksARetry = 256;

}  // namespace

void WriteBehind::OnPublished(NodeId id, TierKind kind) {
  if (!copies_.HasColderTier(kind) || copies_.HasColderCopy(id, kind)) return;
  const tiers::Tier* colder = copies_.ColderTier(kind);
  if (colder == nullptr) {
    copies_.MarkUnwritable(id);
    return ArmRetry();
  }
  if (!copies_.IsDirty(id, kind) || copies_.state(id, colder->kind()) != CopyState::kAbsent) return;
  const policy::WriteMode mode =
      colder->kind() == TierKind::kDram ? policy_.write_to_dram : policy_.write_to_nvme;
  if (mode == policy::WriteMode::kBack && !is_draining_) return KeepRoom(id, kind);
  if (!Start(id, kind)) ++copies_.store_counters().skipped_writes;
}

void WriteBehind::OnRecovered(NodeId id, TierKind kind) {
  const bool is_above_nvme = kind == TierKind::kDram;
  const policy::WriteMode mode = is_above_nvme ? policy_.write_to_nvme : policy_.write_to_dram;
  if (mode == policy::WriteMode::kBack) return;  // it stays dirty until there is need
  copies_.MarkUnwritable(id);
  ArmRetry();
}

bool WriteBehind::Start(NodeId id, TierKind kind) {
  const tiers::Tier* colder = copies_.ColderTier(kind);
  if (colder == nullptr) return false;
  if (moves_.IsMovingTo(id, colder->kind())) return true;
  // Failures are counted by the move.
  moves_.Start(id, kind, colder->kind(), MovePurpose::kWriteBehind, [this](absl::Status status) {
    if (!status.ok()) ArmRetry();
  });
  return moves_.IsMovingTo(id, colder->kind());
}

// Write-back: keeps some room ahead of need.
void WriteBehind::KeepRoom(NodeId id, TierKind kind) {
  const PoolId pool = copies_.PoolOf(id);
  const tiers::Tier* tier = copies_.tier(kind);
  const TenantTable& tenants = copies_.tenants();
  const uint64_t quota_bytes = tenants.use(tenants.tenant_of(pool), kind).quota_bytes;
  const uint64_t bytes =
      quota_bytes == 0 ? tier->capacity_bytes() : std::min(quota_bytes, tier->capacity_bytes());
  const double slots = static_cast<double>(bytes) / static_cast<double>(tenants.slot_bytes(pool));
  const double free =
      static_cast<double>(std::min(tier->FreeSlots(pool), tenants.FreeSlotsUnderQuota(pool, kind)));
  if (free >= (1 - policy_.high_watermark) * slots) return;
  copies_.WriteBackOldest(kind, pool,
                          static_cast<uint64_t>((1 - policy_.low_watermark) * slots - free) + 1);
}

void WriteBehind::ArmRetry() {
  if (is_retry_armed_ || !copies_.HasUnwritable()) return;
  is_retry_armed_ = true;
  executor_.PostAt(clock_.Now() + kRetryPause, [this] { Retry(); });
}

void WriteBehind::Retry() {
  is_retry_armed_ = false;
  // On from where it stopped: blocks that are refused again must not keep the others from their
  // turn.
  const std::vector<NodeId> taken = copies_.TakeUnwritable(next_retry_, kBlocksARetry);
  if (!taken.empty()) next_retry_ = taken.back() + 1;
  for (const NodeId id : taken) {
    for (const TierKind kind : kAllTiers) {
      if (copies_.Has(kind) && copies_.IsResident(id, kind)) OnPublished(id, kind);
    }
  }
  ArmRetry();
}

}  // namespace kvstore::store
