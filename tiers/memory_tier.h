// MemoryTier: a Tier whose pages lie in memory that clients map. What DRAM and GPU have in common:
// SlabPages says where pages are, a SlotMover moves them, this class keeps the contract of Tier and
// counts.
//
// Threads: as Tier; Export() is thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tiers/kept_pages.h"
#include "tiers/slab_pages.h"
#include "tiers/slot_mover.h"
#include "tiers/tier.h"

namespace kvstore::tiers {

class MemoryTier : public Tier {
 public:
  // Calls Stop().
  ~MemoryTier() override;

  absl::Status OpenPool(PoolId pool, const PoolSpec& spec) override;
  absl::StatusOr<PageId> Reserve(PoolId pool) override;
  void Release(PageId page) override { pages_->Release(page); }
  void Quarantine(PageId page) override { pages_->Quarantine(page); }
  void NotePublished(PageId page, const PageIdentity& identity) override {
    pages_->NotePublished(page, identity);
  }
  void CloseSlab(uint32_t slab) override { pages_->CloseSlab(slab); }
  void ReopenSlab(uint32_t slab) override { pages_->ReopenSlab(slab); }
  // Errors, besides those of Tier: Aborted, `page` is not in use; InvalidArgument, a region's size
  // is not the slot's.
  void Write(PageId page, const PageIdentity& identity, ConstRegion src, absl::Time deadline,
             Done done) override;
  void Read(PageId page, const PageIdentity& expect, MutableRegion dst, absl::Time deadline,
            Done done) override;
  std::optional<MutableRegion> Address(PageId page) override;
  uint64_t capacity_bytes() const override { return pages_->slots().capacity_bytes(); }
  uint64_t FreeSlots(PoolId pool) const override { return pages_->slots().FreeSlots(pool); }
  size_t inflight_max() const override { return mover_->inflight_max(); }
  TierStats stats() const override;
  TierState state() const override {
    return is_stopped_ ? TierState::kFailed : TierState::kServing;
  }
  std::string degraded() const override { return pages_->degraded(); }
  Durable* durable() override { return kept_.get(); }
  absl::Status CheckInvariants() const override { return pages_->CheckInvariants(); }
  void Stop() override;

  // Thread-safe; see SlabPages::Export().
  absl::StatusOr<SlabExport> Export(uint32_t slab_id, std::string_view tenant,
                                    MemoryAccess access) const {
    return pages_->Export(slab_id, tenant, access);
  }
  // Waits until all memory is faulted in. Tests and benchmarks.
  void WaitUntilPrepared() { pages_->WaitUntilPrepared(); }

 protected:
  // `make_kept`: for memory that outlives the process; may be empty.
  using MakeKept = absl::AnyInvocable<std::unique_ptr<KeptPages>(SlabPages&)>;
  MemoryTier(std::unique_ptr<SlabPages> pages, std::unique_ptr<SlotMover> mover,
             MakeKept make_kept = {});

 private:
  enum class Direction { kRead, kWrite };
  absl::StatusOr<SlabPlace> PlaceFor(PageId page, const PageIdentity& identity,
                                     uint64_t region_bytes) const;
  // Counts the outcome, then calls `done`. Runs before this object ends: Stop() waits for all
  // operations.
  Done Counting(Direction direction, uint64_t bytes, Done done);

  const std::unique_ptr<SlabPages> pages_;
  const std::unique_ptr<SlotMover> mover_;
  const std::unique_ptr<KeptPages> kept_;  // null: the memory goes with the process
  TierStats counts_;  // bytes and errors; the rest is asked of pages_ and mover_
  bool is_stopped_ = false;
};

}  // namespace kvstore::tiers
