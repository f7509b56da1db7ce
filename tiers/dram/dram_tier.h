// DramTier keeps pages in host memory: sealed memfd slabs that clients map, so that a DRAM hit
// moves no byte through the daemon.
//
// Degraded modes (degraded()): memory could not be locked (RLIMIT_MEMLOCK): it may be swapped out;
// memory could not be faulted in ahead: the first writer pays for it. Not having huge pages is not
// one: they are a matter of speed, and of how the machine is set up.
//
// Threads and ownership: tiers/memory_tier.h.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "tiers/descriptor_keeper.h"
#include "tiers/memory_tier.h"

namespace kvstore::tiers {

class DramTier final : public MemoryTier {
 public:
  struct Options {
    uint64_t bytes = 0;  // rounded down to whole slabs
    uint64_t slab_bytes =
        0;  // multiple of 4096; a slot must fit. ChooseSlabBytes() is the daemon's choice
    transfer::SealedMemory::HugePages huge_pages = transfer::SealedMemory::HugePages::kTry;
    HostSlabMemory::Locking locking = HostSlabMemory::Locking::kOff;
    Prepare prepare = Prepare::kAtStart;
    uint32_t num_mover_threads = 1;  // 1 to 64
    size_t inflight_max = 64;        // at least 1
    MemoryHooks hooks;               // for devices that register memory
    // Keeps the memory for the process that comes after this one; outlives the tier. Null: the
    // memory goes with the process.
    DescriptorKeeper* keeper = nullptr;
    SlabLedger::BootId boot{};                     // of the machine; with a keeper
    absl::Duration hold_time = absl::Seconds(30);  // KeptPages::Options

    // Errors: InvalidArgument naming the field, its value and what is valid.
    absl::Status Validate() const;
  };
  // How many descriptors a keeper has to hold for such a tier, one slab changing hands included.
  static size_t DescriptorsKeptFor(const Options& options);
  // `core` and `clock` outlive the tier.
  // Errors: InvalidArgument; Unavailable, out of memory or descriptors (two a slab);
  // FailedPrecondition, no memfd seals or no /proc.
  static absl::StatusOr<std::unique_ptr<DramTier>> Create(const Options& options, Executor& core,
                                                          const Clock& clock);

  TierKind kind() const override { return TierKind::kDram; }

  // What an earlier process had left; nullopt without a keeper.
  struct KeptStart {
    KeptPages::Found found;
    uint32_t slabs = 0;
    std::string why_cold;  // why nothing of it is used; empty: it is, or there was nothing
  };
  const std::optional<KeptStart>& kept_start() const { return kept_start_; }

 private:
  using MemoryTier::MemoryTier;

  std::optional<KeptStart> kept_start_;
};

}  // namespace kvstore::tiers
