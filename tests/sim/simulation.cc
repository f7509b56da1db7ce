#include "tests/sim/simulation.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"

namespace kvstore::sim {
namespace {

using tiers::TierKind;

constexpr TierKind kTiers[] = {TierKind::kGpu, TierKind::kDram, TierKind::kNvme};
constexpr int kStepsArmedMax = 60;
constexpr int kStepsBetweenChecks = 4;

std::vector<OracleNamespace> MakeNamespaces(const Scenario& scenario) {
  std::vector<OracleNamespace> namespaces;
  for (const char* name : {"a1", "a2", "b1", "b2"}) {
    NamespaceSpec spec;
    spec.model = std::string("model ") + name[1];
    spec.kv_dtype = "bf16";
    spec.block_tokens = 1;
    spec.shape = {.num_slices = 2, .slice_bytes = 100};
    spec.tenant = std::string(1, name[0]);
    if (name == std::string("a2")) spec.shape = {.num_slices = 3, .slice_bytes = 2000};
    if (name == std::string("a1") && scenario.has_large_pages)
      spec.shape = {.num_slices = 10, .slice_bytes = 1000};
    namespaces.emplace_back(std::move(spec));
  }
  return namespaces;
}

}  // namespace

Simulation::Simulation(uint64_t seed, const std::string& folder, bool is_verbose)
    : is_verbose_(is_verbose),
      random_(seed),
      scenario_(DrawScenario(seed, random_)),
      namespaces_(MakeNamespaces(scenario_)),
      machine_(scenario_, folder, random_, [this](const std::string& what) { Fail(what); }),
      clients_(scenario_, machine_, namespaces_, random_,
               [this](const std::string& what) { Fail(what); }) {}

void Simulation::Note(const std::string& what) {
  if (!is_verbose_) return;
  std::printf("  step %d, %s: %s\n", step_,
              absl::FormatDuration(machine_.clock().Now() - absl::UnixEpoch()).c_str(),
              what.c_str());
}

void Simulation::Fail(const std::string& what) {
  if (!outcome_.failure.empty()) return;
  outcome_.failure = absl::StrCat(FamilyName(scenario_.family), ", step ", step_, ": ", what);
  outcome_.step = step_;
}

Outcome Simulation::Run() {
  Boot();
  for (; step_ < scenario_.num_steps && outcome_.failure.empty(); ++step_) Step();
  if (outcome_.failure.empty()) Finish();
  CountProcess();
  outcome_.trace = Mix(clients_.trace() ^ random_.Next());
  outcome_.clients = clients_.counts();
  outcome_.disk = machine_.disk().counts();
  outcome_.failpoints = machine_.failpoints().hits();
  return outcome_;
}

void Simulation::Boot() {
  ++outcome_.boots;
  Note("boot");
  machine_.Boot();
  if (!machine_.is_running()) return;
  clients_.Reconnect();
  armed_for_ = 0;
  if (scenario_.restart_every > 0 && random_.OneIn(3))
    machine_.failpoints().Arm(Failpoint::kMidRecovery, random_.Between(1, 3));
}

void Simulation::Step() {
  clients_.Act();
  RunSome(random_.Below(12));
  if (random_.OneIn(3)) RunUntil(machine_.clock().Now() + random_.UpTo(absl::Milliseconds(4)));
  if (random_.OneIn(40)) RunUntil(machine_.clock().Now() + random_.UpTo(absl::Milliseconds(600)));
  Rare();
  MayRestart();
  machine_.Settle();
  if (step_ % kStepsBetweenChecks == 0) CheckInvariants();
}

void Simulation::RunSome(uint32_t tasks_max) {
  for (uint32_t i = 0; i < tasks_max && !machine_.failpoints().is_off(); ++i) {
    if (random_.OneIn(3)) {
      clients_.network().RunOne();
    } else {
      machine_.RunOne();
    }
  }
}

void Simulation::RunUntil(absl::Time until) {
  ManualClock& clock = machine_.clock();
  while (!machine_.failpoints().is_off() && outcome_.failure.empty()) {
    const bool daemon_first = random_.OneIn(2);
    if (daemon_first ? machine_.RunOne() || clients_.network().RunOne()
                     : clients_.network().RunOne() || machine_.RunOne())
      continue;
    machine_.Settle();
    const absl::Time next =
        std::min(machine_.executor().NextTimer(), clients_.network().NextTimer());
    if (next > until) break;
    clock.Advance(next - clock.Now());
  }
  if (clock.Now() < until) clock.Advance(until - clock.Now());
}

// The daemon stands still (SIGSTOP, a suspended machine) while clients go on reading.
void Simulation::Pause() {
  ++outcome_.pauses;
  Note("pause");
  machine_.Pause(random_.OneIn(8) ? absl::Hours(24 * 30) : random_.UpTo(absl::Seconds(60)));
  for (int i = 0; i < 5; ++i) clients_.Act();
}

void Simulation::Clear() {
  OracleNamespace& ns = namespaces_[random_.Below(static_cast<uint32_t>(namespaces_.size()))];
  if (!machine_.store().FindNamespace(ns.spec().tenant, ns.fingerprint()).ok()) return;
  const uint32_t version = ns.OnClear();
  Note(absl::StrCat("clear ", ns.spec().tenant, " ", ns.spec().model, ": version ", version));
  machine_.store().Clear(ns.spec().tenant, ns.fingerprint(),
                         [&ns, version, this](absl::Status status) {
                           if (!status.ok() || machine_.failpoints().is_off()) return;
                           Note(absl::StrCat("version ", version, " is acknowledged"));
                           ns.OnClearAcknowledged(version);
                         });
}

void Simulation::Rare() {
  if (machine_.failpoints().is_off()) return;
  store::Store& store = machine_.store();
  if (Every(scenario_.clear_every)) Clear();
  if (Every(scenario_.evict_every)) {
    const OracleNamespace& ns =
        namespaces_[random_.Below(static_cast<uint32_t>(namespaces_.size()))];
    const auto found = store.FindNamespace(ns.spec().tenant, ns.fingerprint());
    if (found.ok()) store.Evict(found->id, kTiers[random_.Below(3)]);
  }
  if (Every(scenario_.verify_every)) {
    store.Verify(std::nullopt,
                 random_.OneIn(2) ? store::VerifyMode::kRepair : store::VerifyMode::kDropBad,
                 [](const auto&) {});
  }
  if (Every(scenario_.die_every)) clients_.Die();
  if (Every(scenario_.rot_every)) machine_.disk().Rot();
  if (Every(scenario_.scribble_every)) clients_.Scribble();
  if (Every(scenario_.pause_every)) Pause();
  if (random_.OneIn(50)) clients_.Intrude();
}

void Simulation::MayRestart() {
  if (scenario_.restart_every == 0) return;
  if (machine_.failpoints().is_off()) return Restart();
  if (machine_.failpoints().is_armed()) {
    if (++armed_for_ > kStepsArmedMax) Restart();
    return;
  }
  if (!Every(scenario_.restart_every)) return;
  const auto point = static_cast<Failpoint>(random_.Below(kNumFailpoints));
  const bool is_of_memory = point >= Failpoint::kBeforeNote;
  if (point == Failpoint::kAnywhere || !(is_of_memory ? scenario_.keeps_dram : scenario_.has_nvme))
    return Restart();
  Note(absl::StrCat("will stop ", kFailpointNames[static_cast<size_t>(point)]));
  const bool is_metadata = point == Failpoint::kMidMetadata;
  machine_.failpoints().Arm(point, is_metadata ? 1 : random_.Between(1, 6));
  if (is_metadata) Clear();
}

void Simulation::Restart() {
  CountProcess();
  const bool must_survive =
      scenario_.family == Scenario::Family::kRestart && machine_.is_recovered();
  // At a failpoint a task goes on whose effects are lost.
  const bool is_between_tasks = !machine_.failpoints().is_off();
  const auto stored = [&](TierKind kind, bool is_kept) {
    return must_survive && is_kept ? In(kind) : std::set<BlockHash>();
  };
  const std::set<BlockHash> on_nvme = stored(TierKind::kNvme, scenario_.has_nvme);
  const std::set<BlockHash> in_dram =
      stored(TierKind::kDram, scenario_.keeps_dram && is_between_tasks);
  if (is_between_tasks && scenario_.keeps_dram) clients_.LeaveZombies();
  if (scenario_.power_share > 0 && random_.OneIn(scenario_.power_share)) {
    ++outcome_.power_losses;
    Note("power loss");
    machine_.LosePower();
  } else if (!machine_.failpoints().is_off() && random_.OneIn(3)) {
    Note("clean stop");
    machine_.StopCleanly();
  } else {
    Note("kill");
    machine_.Kill();
  }
  if (scenario_.family == Scenario::Family::kEverything && random_.OneIn(4))
    machine_.log().Damage(random_);
  machine_.clock().Advance(random_.UpTo(absl::Seconds(3)));
  Boot();
  if (!must_survive || machine_.failpoints().is_armed()) return;
  RunUntil(machine_.clock().Now() + absl::Milliseconds(200));
  if (!machine_.is_recovered()) return Fail("recovery does not end");
  for (const auto& [kind, before] :
       {std::pair(TierKind::kNvme, on_nvme), std::pair(TierKind::kDram, in_dram)}) {
    const std::set<BlockHash> after = In(kind);
    if (std::includes(after.begin(), after.end(), before.begin(), before.end())) continue;
    Fail(absl::StrCat("of ", before.size(), " pages in ", std::string(tiers::TierName(kind)),
                      " some were lost by a kill"));
  }
}

std::set<BlockHash> Simulation::In(TierKind kind) {
  std::set<BlockHash> found;
  for (const OracleNamespace& ns : namespaces_) {
    const auto opened = machine_.store().FindNamespace(ns.spec().tenant, ns.fingerprint());
    if (!opened.ok()) continue;
    for (const store::BlockRow& row : machine_.store().List(opened->id, kind, SIZE_MAX))
      found.insert(row.hash);
  }
  return found;
}

void Simulation::CountProcess() {
  if (!machine_.is_running()) return;
  for (const store::TierRow& row : machine_.store().status().tiers) {
    outcome_.evictions += row.counters.evicted_pages;
    outcome_.recovered_pages += row.counters.recovered_pages;
    outcome_.quarantined += row.stats.quarantined_pages;
  }
}

void Simulation::CheckInvariants() {
  if (!outcome_.failure.empty() || machine_.failpoints().is_off()) return;
  const absl::Status status = machine_.store().CheckInvariants();
  if (!status.ok()) Fail(status.ToString());
}

// Faults end, clients go: nothing may be left over.
void Simulation::Finish() {
  machine_.Heal();
  if (machine_.failpoints().is_off()) Restart();
  machine_.failpoints().TurnOn();
  clients_.CloseAll();
  RunUntil(machine_.clock().Now() + absl::Minutes(2));
  CheckInvariants();
  const store::StoreStatus status = machine_.store().status();
  if (status.is_recovering) Fail("recovery does not end");
  if (status.sessions + status.leases + status.reservations + status.moves_in_flight > 0) {
    Fail(absl::StrCat("left over: ", status.sessions, " sessions, ", status.leases, " leases, ",
                      status.reservations, " reservations, ", status.moves_in_flight, " moves"));
  }
  std::array<uint64_t, tiers::kNumTierKinds> resident{};
  for (const OracleNamespace& ns : namespaces_) {
    const auto opened = machine_.store().FindNamespace(ns.spec().tenant, ns.fingerprint());
    if (!opened.ok()) continue;
    for (const store::BlockRow& row : machine_.store().List(opened->id, std::nullopt, SIZE_MAX)) {
      if (row.leases > 0) Fail("a hold leaked");
      if (!ns.MayMatch(row.hash)) Fail("a block is stored that nobody committed");
      for (size_t t = 0; t < resident.size(); ++t) resident[t] += row.resident[t];
    }
  }
  for (const TierKind kind : kTiers) {
    const tiers::Tier* tier = machine_.tier(kind);
    if (tier == nullptr) continue;
    const tiers::TierStats stats = tier->stats();
    if (stats.in_flight > 0) Fail("an operation is still in flight");
    if (stats.used_pages != resident[static_cast<size_t>(kind)]) {
      Fail(absl::StrCat(std::string(tiers::TierName(kind)), ": ", stats.used_pages,
                        " pages in use, ", resident[static_cast<size_t>(kind)], " resident"));
    }
    if (tier->state() != tiers::TierState::kServing) Fail("a tier did not come back");
  }
}

}  // namespace kvstore::sim
