#include "tools/kvbench/null_tier.h"

#include <algorithm>
#include <utility>

namespace kvstore::bench {
namespace {

constexpr uint64_t kSlabBytes = uint64_t{64} << 20;

std::byte* Nowhere() {
  static std::byte place{};
  return &place;
}

}  // namespace

NullTier::NullTier(tiers::TierKind kind, uint64_t capacity_bytes, Executor& executor)
    : kind_(kind),
      executor_(executor),
      slots_({.num_slabs = static_cast<uint32_t>((capacity_bytes + kSlabBytes - 1) / kSlabBytes),
              .slab_bytes = kSlabBytes}) {}

void NullTier::Write(PageId, const PageIdentity&, ConstRegion, absl::Time, Done done) {
  Succeed(std::move(done));
}
void NullTier::Read(PageId, const PageIdentity&, MutableRegion, absl::Time, Done done) {
  Succeed(std::move(done));
}
void NullTier::SaveMetadata(std::string, std::string, Done done) { Succeed(std::move(done)); }

void NullTier::Succeed(Done done) {
  executor_.Post([done = std::move(done)]() mutable { done(absl::OkStatus()); });
}

std::optional<MutableRegion> NullTier::Address(PageId page) {
  return MutableRegion{Nowhere(), slots_.SlotBytes(page.slab)};
}

tiers::TierStats NullTier::stats() const {
  tiers::TierStats stats;
  stats.capacity_bytes = slots_.capacity_bytes();
  stats.used_bytes = slots_.used_bytes();
  stats.used_pages = slots_.used_pages();
  return stats;
}

void NullTier::Recover(RecoveryHooks hooks) {
  executor_.Post(
      [finished = std::move(hooks.on_finished)]() mutable { finished(absl::OkStatus()); });
}

}  // namespace kvstore::bench
