#include "tiers/dram/dram_tier.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"

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
  pages_options.make_slab = [memory, locking = options.locking] {
    return HostSlabMemory::Create(memory, locking);
  };
  ASSIGN_OR_RETURN(std::unique_ptr<SlabPages> pages,
                   SlabPages::Create(std::move(pages_options), clock));
  const transfer::MemoryMover::Options mover_options = {.name = "dram-mover",
                                                        .num_threads = options.num_mover_threads,
                                                        .inflight_max = options.inflight_max};
  auto mover = std::make_unique<HostSlotMover>(mover_options, core, clock);
  return std::unique_ptr<DramTier>(new DramTier(std::move(pages), std::move(mover)));
}

}  // namespace kvstore::tiers
