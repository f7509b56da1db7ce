#include "tests/sim/scenario.h"

namespace kvstore::sim {
namespace {

using Family = Scenario::Family;
using policy::WriteMode;

void AddDiskFaults(Scenario* s, Random& random) {
  const double level = random.OneIn(3) ? 0.08 : 0.02;
  const auto maybe = [&](double weight) { return random.OneIn(2) ? level * weight : 0; };
  s->disk = {.io_error = maybe(1),
             .full = maybe(0.3),
             .short_transfer = maybe(2),
             .again = maybe(2),
             .late = maybe(2),
             .hung = maybe(0.1),
             .duplicate = maybe(2),
             .torn_write = maybe(0.5),
             .lost_write = maybe(0.5),
             .misdirected = maybe(0.3),
             .stale_read = maybe(1),
             .flipped_bit = maybe(1)};
  s->index = {.failed_batch = maybe(0.3), .slow_batch = maybe(0.5)};
  s->rot_every = random.OneIn(2) ? 30 : 0;
}

void AddMemoryFaults(Scenario* s, Random& random) {
  for (SimMemoryTier::Options* tier : {&s->gpu, &s->dram})
    tier->faults = {.failed = 0.03, .late = 0.03, .differs = random.OneIn(2) ? 0.01 : 0};
  s->scribble_every = 25;
  s->zombie_every = 3;
}

void AddRestarts(Scenario* s, Random& random) {
  s->restart_every = random.Between(60, 180);
  s->power_share = random.Between(1, 3);
  s->lost = 0.02;
}

void Squeeze(Scenario* s, Random& random) {
  s->gpu.num_slabs = random.Between(1, 3);
  s->dram.num_slabs = random.Between(2, 4);
  s->gpu.slab_bytes = s->dram.slab_bytes = random.Between(3, 8) * 4096;
  s->num_extents = random.Between(2, 4);
}

}  // namespace

const char* FamilyName(Family family) {
  constexpr const char* kNames[] = {"exact", "pressure", "storm",      "disk",
                                    "power", "memory",   "everything", "restart"};
  return kNames[static_cast<size_t>(family)];
}

Scenario DrawScenario(uint64_t seed, Random& random) {
  Scenario s;
  s.family = static_cast<Family>(seed % Scenario::kNumFamilies);
  s.has_gpu = random.OneIn(2);
  s.policy.write_to_dram = random.OneIn(3) ? WriteMode::kBack : WriteMode::kThrough;
  s.policy.write_to_nvme = random.OneIn(3) ? WriteMode::kBack : WriteMode::kThrough;
  s.lease_time = random.OneIn(2) ? absl::Seconds(30) : absl::Seconds(2);
  s.pause_every = random.OneIn(2) ? 80 : 0;
  s.num_clients = random.Between(2, 6);
  s.keeps_dram = random.OneIn(2);
  const bool is_for_disks =
      s.family == Family::kPressure || s.family == Family::kDisk || s.family == Family::kEverything;
  s.has_large_pages = is_for_disks && seed / Scenario::kNumFamilies % 2 == 0;
  switch (s.family) {
    case Family::kExact:
      s.gpu.num_slabs = s.dram.num_slabs = 40;
      s.num_extents = 40;
      s.has_nvme = random.OneIn(2);
      s.evict_every = 0;
      break;
    case Family::kPressure:
      Squeeze(&s, random);
      break;
    case Family::kStorm:
      s.has_gpu = false;
      s.dram.num_slabs = 1;
      s.dram.slab_bytes = random.Between(1, 2) * 4096;
      s.num_extents = 2;
      s.chain_blocks = 3;
      break;
    case Family::kDisk:
      Squeeze(&s, random);
      AddDiskFaults(&s, random);
      break;
    case Family::kPower:
      AddRestarts(&s, random);
      if (random.OneIn(2)) Squeeze(&s, random);
      break;
    case Family::kMemory:
      s.has_gpu = true;
      Squeeze(&s, random);
      AddMemoryFaults(&s, random);
      break;
    case Family::kEverything:
      Squeeze(&s, random);
      AddDiskFaults(&s, random);
      AddMemoryFaults(&s, random);
      AddRestarts(&s, random);
      break;
    case Family::kRestart:
      s.restart_every = 100;
      s.power_share = 0;
      s.policy.write_to_nvme = WriteMode::kThrough;
      s.has_nvme = !s.keeps_dram || random.OneIn(2);
      break;
  }
  return s;
}

}  // namespace kvstore::sim
