// What one seed is about: sizes, policies, faults and habits, all drawn from the seed.
#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "kvstore/policy/policies.h"
#include "tests/sim/sim_disk.h"
#include "tests/sim/sim_index.h"
#include "tests/sim/sim_memory_tier.h"

namespace kvstore::sim {

struct Scenario {
  // The family of the seed, `seed % kNumFamilies`: each is sure to be drawn.
  enum class Family : uint8_t {
    kExact,       // ample room, no faults, no restarts: matches are exactly what was committed
    kPressure,    // little room, no faults
    kStorm,       // one page in memory: every save and load evicts
    kDisk,        // disk and index fail in every way
    kPower,       // power losses and kills at failpoints
    kMemory,      // copies in memory fail; clients scribble over slots
    kEverything,  // all of it
    kRestart,     // kills without other faults: what NVMe and kept memory had is there again
  };
  static constexpr uint32_t kNumFamilies = 8;

  Family family{};
  bool has_gpu = true;
  bool has_nvme = true;
  bool has_large_pages = false;  // of the busiest namespace: read in pieces
  bool keeps_dram = false;       // somebody holds the DRAM tier's memory over a kill
  SimMemoryTier::Options gpu{.kind = tiers::TierKind::kGpu};
  SimMemoryTier::Options dram{.kind = tiers::TierKind::kDram};
  uint32_t num_extents = 6;
  DiskFaults disk;
  SimIndex::Faults index;
  policy::PolicyOptions policy;
  absl::Duration lease_time = absl::Seconds(30);
  absl::Duration move_deadline = absl::Seconds(2);

  int num_steps = 800;
  uint32_t num_clients = 4;
  uint32_t branches = 5;
  uint32_t chain_blocks = 6;
  // One in so many steps; 0: never.
  uint32_t restart_every = 0,
           power_share = 2;  // of the restarts one in power_share is a power loss
  uint32_t clear_every = 250, evict_every = 120, verify_every = 120, die_every = 80;
  uint32_t rot_every = 0, scribble_every = 0, pause_every = 0, zombie_every = 0;
  // Share of messages between clients and daemon that come twice, are lost, or are late.
  double duplicated = 0.05, lost = 0, late = 0.1;

  bool is_exact() const { return family == Family::kExact; }
  // Bytes differ only where somebody damaged them.
  bool is_damaged() const {
    return rot_every + scribble_every + zombie_every > 0 || family == Family::kEverything ||
           family == Family::kDisk || family == Family::kMemory;
  }
};

Scenario DrawScenario(uint64_t seed, Random& random);
const char* FamilyName(Scenario::Family family);

}  // namespace kvstore::sim
