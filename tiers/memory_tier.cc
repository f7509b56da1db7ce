#include "tiers/memory_tier.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace kvstore::tiers {

MemoryTier::MemoryTier(std::unique_ptr<SlabPages> pages, std::unique_ptr<SlotMover> mover,
                       MakeKept make_kept)
    : pages_(std::move(pages)),
      mover_(std::move(mover)),
      kept_(make_kept ? make_kept(*pages_) : nullptr) {}

MemoryTier::~MemoryTier() { MemoryTier::Stop(); }

absl::Status MemoryTier::OpenPool(PoolId pool, const PoolSpec& spec) {
  return pages_->OpenPool(pool, spec);
}

absl::StatusOr<PageId> MemoryTier::Reserve(PoolId pool) {
  if (state() != TierState::kServing) return absl::UnavailableError("the tier is not serving");
  return pages_->Reserve(pool);
}

void MemoryTier::Write(PageId page, const PageIdentity& identity, ConstRegion src,
                       absl::Time deadline, Done done) {
  absl::StatusOr<SlabPlace> place = PlaceFor(page, identity, src.bytes);
  if (!place.ok()) {
    mover_->Fail(std::move(place).status(), std::move(done));
    return;
  }
  mover_->Write(*place, identity, src, deadline,
                Counting(Direction::kWrite, src.bytes, std::move(done)));
}

void MemoryTier::Read(PageId page, const PageIdentity& expect, MutableRegion dst,
                      absl::Time deadline, Done done) {
  absl::StatusOr<SlabPlace> place = PlaceFor(page, expect, dst.bytes);
  if (!place.ok()) {
    mover_->Fail(std::move(place).status(), std::move(done));
    return;
  }
  mover_->Read(*place, expect, dst, deadline,
               Counting(Direction::kRead, dst.bytes, std::move(done)));
}

std::optional<MutableRegion> MemoryTier::Address(PageId page) {
  const std::optional<SlabPlace> place = pages_->Find(page);
  if (!place.has_value() || place->memory->host_data() == nullptr) return std::nullopt;
  return MutableRegion{place->memory->host_data() + place->offset, place->slot_bytes};
}

TierStats MemoryTier::stats() const {
  TierStats stats = counts_;
  stats.capacity_bytes = pages_->slots().capacity_bytes();
  stats.used_bytes = pages_->slots().used_bytes();
  stats.used_pages = pages_->slots().used_pages();
  stats.quarantined_pages = pages_->slots().quarantined_pages();
  stats.in_flight = mover_->in_flight();
  return stats;
}

void MemoryTier::Stop() {
  is_stopped_ = true;
  if (kept_ != nullptr) kept_->Stop();
  mover_->Stop();
  pages_->Stop();
}

absl::StatusOr<SlabPlace> MemoryTier::PlaceFor(PageId page, const PageIdentity& identity,
                                               uint64_t region_bytes) const {
  std::optional<SlabPlace> place = pages_->Find(page);
  if (!place.has_value()) {
    return absl::AbortedError(absl::StrCat("slab ", page.slab, " slot ", page.slot, " generation ",
                                           page.generation, " is not in use"));
  }
  const uint64_t slot_bytes = identity.shape.slot_bytes();
  if (region_bytes != slot_bytes || slot_bytes > place->slot_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("a region of ", region_bytes,
                                                   " bytes for a page whose slot takes ",
                                                   slot_bytes, ", of ", place->slot_bytes));
  }
  return *std::move(place);
}

MemoryTier::Done MemoryTier::Counting(Direction direction, uint64_t bytes, Done done) {
  return [this, direction, bytes, done = std::move(done)](absl::Status status) mutable {
    const bool is_read = direction == Direction::kRead;
    if (status.ok()) {
      (is_read ? counts_.read_bytes : counts_.write_bytes) += bytes;
    } else if (absl::IsDataLoss(status)) {
      ++counts_.checksum_errors;
    } else if (!absl::IsResourceExhausted(status)) {
      ++(is_read ? counts_.read_errors : counts_.write_errors);
    }
    done(std::move(status));
  };
}

}  // namespace kvstore::tiers
