// KeptMemory is the DRAM tier's memory as somebody else holds it over the death of this process:
// a ledger, and for each slab its memory and its generation table, as descriptors with names.
//
// What does not fit together is left aside, never misread: with a ledger of another version,
// geometry or boot, or a damaged one, everything is let go and the tier starts cold; a slab whose
// descriptors are missing, or are not those that the ledger names, begins anew.
//
// Thread-safe: Keep() and Forget(). The rest belongs to whoever starts the tier, then to the core.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tiers/descriptor_keeper.h"
#include "tiers/slab_ledger.h"
#include "tiers/slab_pages.h"
#include "transfer/memory/sealed_memory.h"

namespace kvstore::tiers {

class KeptMemory final : public SlabKeeper {
 public:
  struct Options {
    SlabLedger::Geometry geometry;
    HostSlabMemory::Locking locking = HostSlabMemory::Locking::kOff;
  };
  // `keeper` outlives the object. Errors: Unavailable, no memory, no descriptor, or the keeper does
  // not take the ledger.
  static absl::StatusOr<std::unique_ptr<KeptMemory>> Open(const Options& options,
                                                          DescriptorKeeper& keeper);

  // Lets go of whatever a process with kept memory left with the keeper.
  static void ForgetAll(DescriptorKeeper& keeper);

  absl::Status Keep(uint32_t slab_id, const SlabMemory& memory) override;
  void Forget(uint32_t slab_id) override;

  SlabLedger& ledger() { return *ledger_; }
  // [num_slabs]; once.
  std::vector<RestoredSlab> TakeRestored() { return std::move(restored_); }
  const std::vector<bool>& is_restored() const { return is_restored_; }
  // Above every generation that a slot had under this ledger.
  uint64_t generation_base() const { return generation_base_; }
  // Why what was kept is not used; empty: it is, or there was nothing.
  const std::string& why_cold() const { return why_cold_; }

 private:
  KeptMemory(const Options& options, DescriptorKeeper& keeper)
      : options_(options), keeper_(keeper) {}
  absl::Status OpenLedger();
  absl::Status Attach();
  absl::Status Format();
  absl::Status CountStart();
  void RestoreSlabs();
  absl::StatusOr<RestoredSlab> RestoreSlab(const SlabLedger::Slab& slab);

  const Options options_;
  DescriptorKeeper& keeper_;
  std::optional<transfer::SealedMemory> memory_;  // of the ledger; before it
  std::optional<SlabLedger> ledger_;
  std::vector<RestoredSlab> restored_;
  std::vector<bool> is_restored_;
  uint64_t generation_base_ = 0;
  std::string why_cold_;
};

}  // namespace kvstore::tiers
