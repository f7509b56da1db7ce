// A tier with slots but without bytes: reads and writes succeed and do nothing. For measuring the
// store's core alone.
#pragma once

#include "kvstore/base/executor.h"
#include "tiers/slot_allocator.h"
#include "tiers/tier.h"

namespace kvstore::bench {

// As Tier says. Addresses all name one and the same place, which nobody may touch.
class NullTier final : public tiers::DurableTier {
 public:
  NullTier(tiers::TierKind kind, uint64_t capacity_bytes, Executor& executor);

  tiers::TierKind kind() const override { return kind_; }
  absl::Status OpenPool(PoolId pool, const tiers::PoolSpec& spec) override {
    return slots_.OpenPool(pool, spec.slot_bytes);
  }
  absl::StatusOr<PageId> Reserve(PoolId pool) override { return slots_.Reserve(pool); }
  void Release(PageId page) override { slots_.Release(page); }
  void Quarantine(PageId page) override { slots_.Quarantine(page); }
  void CloseSlab(uint32_t slab) override { slots_.Close(slab); }
  void ReopenSlab(uint32_t slab) override { slots_.Reopen(slab); }
  void Write(PageId page, const PageIdentity& identity, ConstRegion src, absl::Time deadline,
             Done done) override;
  void Read(PageId page, const PageIdentity& expect, MutableRegion dst, absl::Time deadline,
            Done done) override;
  std::optional<MutableRegion> Address(PageId page) override;
  uint64_t capacity_bytes() const override { return slots_.capacity_bytes(); }
  uint64_t FreeSlots(PoolId pool) const override { return slots_.FreeSlots(pool); }
  size_t inflight_max() const override { return 1024; }
  tiers::TierStats stats() const override;
  tiers::TierState state() const override { return tiers::TierState::kServing; }
  absl::Status CheckInvariants() const override { return slots_.CheckInvariants(); }
  tiers::Durable* durable() override { return kind_ == tiers::TierKind::kNvme ? this : nullptr; }
  void Stop() override {}
  void Recover(RecoveryHooks hooks) override;
  void SaveMetadata(std::string key, std::string value, Done done) override;

 private:
  void Succeed(Done done);

  const tiers::TierKind kind_;
  Executor& executor_;
  tiers::SlotAllocator slots_;
};

}  // namespace kvstore::bench
