// The memory tiers of a simulation: the real MemoryTier and SlabPages (slots, generations, tenants)
// and the real page codec, over plain memory and virtual time.
//
// The one thread that SlabPages has of its own, which frees memory that changes tenants, runs only
// inside Settle(): the outcome does not depend on when it is scheduled.
//
// Confined to the simulation's thread, but for that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "kvstore/base/clock.h"
#include "kvstore/base/executor.h"
#include "tests/sim/failpoints.h"
#include "tests/sim/sim_random.h"
#include "tiers/memory_tier.h"

namespace kvstore::sim {

// Memory of one slab, as a client keeps it mapped: also after the tier gave it up.
struct MappedSlab {
  std::unique_ptr<std::byte, decltype(&std::free)> data{nullptr, &std::free};
  size_t bytes = 0;
  std::vector<uint64_t> generations;  // [bytes / 4096]
  uint64_t number = 0;                // tells it from others
};

// What somebody keeps over the death of a daemon: the ledger, and slabs by id.
struct KeptMachineMemory {
  std::vector<uint64_t> ledger;  // words, for their alignment; empty: none yet
  std::map<uint32_t, std::shared_ptr<MappedSlab>> slabs;

  // As it is now. Restoring writes into the same slabs: who has them mapped sees it.
  struct Snapshot {
    struct Slab {
      std::shared_ptr<MappedSlab> slab;
      std::vector<std::byte> data;
      std::vector<uint64_t> generations;
    };
    std::vector<uint64_t> ledger;
    std::map<uint32_t, Slab> slabs;
  };
  Snapshot Take() const;
  void Restore(const Snapshot& snapshot);
};

// All slabs that clients can have mapped, by address.
class Mappings {
 public:
  std::shared_ptr<MappedSlab> Make(size_t bytes);
  // One that was there before the daemon.
  void Add(const std::shared_ptr<MappedSlab>& slab);
  // The generation that a client sees for the slot at `address`.
  uint64_t GenerationAt(const std::byte* address) const;
  void Clear() {
    slabs_.clear();
    in_order_.clear();
  }
  // Keeps the memory at `address` mapped.
  std::shared_ptr<MappedSlab> SlabAt(const std::byte* address) const {
    return std::prev(slabs_.upper_bound(address))->second;
  }
  // A byte inside some slab: for those who scribble.
  std::byte* RandomByte(Random& random);

 private:
  std::map<const std::byte*, std::shared_ptr<MappedSlab>> slabs_;
  // As made: addresses differ from run to run.
  std::vector<std::shared_ptr<MappedSlab>> in_order_;
  uint64_t last_number_ = 0;
};

struct MemoryFaults {
  double failed = 0;   // Unavailable, part of the bytes copied
  double late = 0;     // up to beyond the deadline
  double differs = 0;  // DataLoss although the source is right
};

class SimMemoryTier final : public tiers::MemoryTier {
 public:
  struct Options {
    tiers::TierKind kind{};
    uint32_t num_slabs = 4;
    uint64_t slab_bytes = 16 * 4096;
    size_t inflight_max = 8;
    MemoryFaults faults;
    absl::Duration hold_time = absl::Seconds(30);  // KeptPages::Options
  };
  // `kept`: null, or what outlives the daemon; outlives the tier. `failpoints` outlive it, too.
  static std::unique_ptr<SimMemoryTier> Make(const Options& options, Executor& executor,
                                             const Clock& clock, Mappings& mappings, Random& random,
                                             Failpoints& failpoints, KeptMachineMemory* kept);
  ~SimMemoryTier() override;

  tiers::TierKind kind() const override { return kind_; }
  void Release(PageId page) override;
  void NotePublished(PageId page, const PageIdentity& identity) override;
  void Stop() override;
  // Lets memory that was given up be freed. Between steps.
  void Settle();
  void set_faults(const MemoryFaults& faults);

 private:
  class Gate;
  class Slab;
  class Mover;
  struct Kept;
  SimMemoryTier(tiers::TierKind kind, std::unique_ptr<tiers::SlabPages> pages,
                std::unique_ptr<Mover> mover, Mover* sim_mover, std::shared_ptr<Gate> gate,
                Failpoints& failpoints, MakeKept make_kept);

  const tiers::TierKind kind_;
  Mover* const sim_mover_;  // owned by MemoryTier
  Failpoints& failpoints_;
  const std::shared_ptr<Gate> gate_;  // shared with slabs, which the background thread drops
};

}  // namespace kvstore::sim
