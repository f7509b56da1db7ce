#include "tiers/dram/dram_tier.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "tiers/dram/kept_memory.h"

namespace kvstore::tiers {
namespace {

constexpr uint32_t kMoverThreadsMax = 64;

}  // namespace

absl::Status DramTier::Options::Validate() const {
  RETURN_IF_ERROR(ValidateSlabs(bytes, slab_bytes));
  if (num_mover_threads == 0 || num_mover_threads > kMoverThreadsMax) {
    return absl::InvalidArgumentError(absl::StrCat("num_mover_threads is ", num_mover_threads,
                                                   ", valid: 1 to ", kMoverThreadsMax));
  }
  if (inflight_max == 0) {
    return absl::InvalidArgumentError("inflight_max is 0, valid: 1 and above");
  }
  return absl::OkStatus();
}

size_t DramTier::DescriptorsKeptFor(const Options& options) {
  return 1 + 2 * (options.bytes / options.slab_bytes + 1);
}

absl::StatusOr<std::unique_ptr<DramTier>> DramTier::Create(const Options& options, Executor& core,
                                                           const Clock& clock) {
  RETURN_IF_ERROR(options.Validate());
  const transfer::SealedMemory::Options memory = {
      .name = "kvstore-dram", .bytes = options.slab_bytes, .huge_pages = options.huge_pages};
  SlabPages::Options pages_options;
  pages_options.name = "dram-slabs";
  pages_options.num_slabs = static_cast<uint32_t>(options.bytes / options.slab_bytes);
  pages_options.slab_bytes = options.slab_bytes;
  pages_options.prepare = options.prepare;
  pages_options.hooks = options.hooks;
  // Lives as long as the pages: their make_slab has it.
  std::shared_ptr<KeptMemory> kept;
  std::vector<bool> is_restored;
  if (options.keeper != nullptr) {
    ASSIGN_OR_RETURN(kept, KeptMemory::Open({.geometry = {.slab_bytes = options.slab_bytes,
                                                          .num_slabs = pages_options.num_slabs,
                                                          .boot = options.boot},
                                             .locking = options.locking},
                                            *options.keeper));
    pages_options.ledger = &kept->ledger();
    pages_options.keeper = kept.get();
    pages_options.restored = kept->TakeRestored();
    pages_options.generation_base = kept->generation_base();
    is_restored = kept->is_restored();
  }
  using Life = HostSlabMemory::Life;
  pages_options.make_slab = [memory, locking = options.locking, kept] {
    return HostSlabMemory::Create(memory, locking, kept == nullptr ? Life::kOwn : Life::kKept);
  };
  ASSIGN_OR_RETURN(std::unique_ptr<SlabPages> pages,
                   SlabPages::Create(std::move(pages_options), clock));
  const transfer::MemoryMover::Options mover_options = {.name = "dram-mover",
                                                        .num_threads = options.num_mover_threads,
                                                        .inflight_max = options.inflight_max};
  auto mover = std::make_unique<HostSlotMover>(mover_options, core, clock);
  if (kept == nullptr)
    return std::unique_ptr<DramTier>(new DramTier(std::move(pages), std::move(mover)));
  KeptStart start{.found = {}, .slabs = 0, .why_cold = kept->why_cold()};
  start.slabs = static_cast<uint32_t>(std::ranges::count(is_restored, true));
  const KeptPages::Options kept_options{.hold_time = options.hold_time};
  auto make_kept = [&](SlabPages& of) {
    auto kept_pages =
        std::make_unique<KeptPages>(kept_options, is_restored, of, kept->ledger(), core, clock);
    start.found = kept_pages->found();
    return kept_pages;
  };
  std::unique_ptr<DramTier> tier(
      new DramTier(std::move(pages), std::move(mover), std::move(make_kept)));
  tier->kept_start_ = std::move(start);
  return tier;
}

}  // namespace kvstore::tiers
