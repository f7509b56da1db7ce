// One seed from its first boot to its end: clients, daemon and disk on virtual time.
//
// Everything that happens follows from the seed: two runs of it are equal to the last bit
// (Outcome::trace). Invariants are checked after every step; the first that does not hold ends the
// run.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "tests/sim/clients.h"
#include "tests/sim/machine.h"
#include "tests/sim/scenario.h"

namespace kvstore::sim {

struct Outcome {
  std::string failure;  // empty: all invariants held
  int step = 0;         // of the failure
  uint64_t trace = 0;
  ClientCounts clients;
  DiskCounts disk;
  std::array<uint64_t, kNumFailpoints> failpoints{};
  uint64_t boots = 0, power_losses = 0, evictions = 0, recovered_pages = 0, pauses = 0,
           quarantined = 0;
};

class Simulation {
 public:
  // `folder`: an empty one for this seed alone.
  Simulation(uint64_t seed, const std::string& folder, bool is_verbose);
  Outcome Run();

 private:
  void Step();
  // Runs daemon and network until `until`, timers in order.
  void RunUntil(absl::Time until);
  // Some tasks of both, in any order.
  void RunSome(uint32_t tasks_max);
  void Pause();
  void Rare();
  void MayRestart();
  void Restart();
  void Boot();
  void CheckInvariants();
  void Finish();
  void Clear();
  bool Every(uint32_t steps) { return steps > 0 && random_.OneIn(steps); }
  void Fail(const std::string& what);
  // For people who follow one seed.
  void Note(const std::string& what);
  // Hashes of what a tier holds, for Family::kRestart.
  std::set<BlockHash> In(tiers::TierKind kind);
  void CountProcess();

  const bool is_verbose_;
  Random random_;
  const Scenario scenario_;
  std::vector<OracleNamespace> namespaces_;
  Machine machine_;
  Clients clients_;
  Outcome outcome_;
  int step_ = 0;
  int armed_for_ = 0;
};

}  // namespace kvstore::sim
