// Runs seeds of the simulation.
//
//   sim_test --seeds 1-5000     those seeds (default: 1-200)
//   sim_test --seeds 17 -v      one, with what happened in it
//
// A seed that fails prints the command that reruns it alone.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>

#include "gtest/gtest.h"
#include "tests/sim/simulation.h"

namespace kvstore::sim {
namespace {

struct Arguments {
  uint64_t first = 1, last = 200;
  bool is_verbose = false;
} arguments;

Outcome RunSeed(uint64_t seed, const std::string& base) {
  const std::string folder = base + "/nvme";
  std::filesystem::remove_all(folder);
  return Simulation(seed, folder, arguments.is_verbose).Run();
}

void Add(const Outcome& o, Outcome* sum) {
  sum->boots += o.boots;
  sum->power_losses += o.power_losses;
  sum->evictions += o.evictions;
  sum->recovered_pages += o.recovered_pages;
  sum->pauses += o.pauses;
  sum->quarantined += o.quarantined;
  for (size_t i = 0; i < kNumFailpoints; ++i) sum->failpoints[i] += o.failpoints[i];
  ClientCounts& c = sum->clients;
  c.loads += o.clients.loads;
  c.saves += o.clients.saves;
  c.matched_blocks += o.clients.matched_blocks;
  c.pages_read += o.clients.pages_read;
  c.slices_read += o.clients.slices_read;
  c.pages_lost += o.clients.pages_lost;
  c.pages_damaged += o.clients.pages_damaged;
  c.committed_blocks += o.clients.committed_blocks;
  c.messages_repeated += o.clients.messages_repeated;
  c.messages_lost += o.clients.messages_lost;
  c.zombie_writes += o.clients.zombie_writes;
  c.refused_intruders += o.clients.refused_intruders;
  sum->disk.reads += o.disk.reads;
  sum->disk.writes += o.disk.writes;
  sum->disk.faults += o.disk.faults;
  sum->disk.lost_sectors += o.disk.lost_sectors;
  sum->disk.cancels += o.disk.cancels;
}

#define N(value) static_cast<unsigned long long>(value)

void Print(const Outcome& o) {
  const ClientCounts& c = o.clients;
  std::printf(
      "clients: %llu loads, %llu saves, %llu blocks matched, %llu committed; messages: "
      "%llu repeated, %llu lost; intruders refused %llu; writes of the dead %llu\n",
      N(c.loads), N(c.saves), N(c.matched_blocks), N(c.committed_blocks), N(c.messages_repeated),
      N(c.messages_lost), N(c.refused_intruders), N(c.zombie_writes));
  std::printf(
      "pages read: %llu right, %llu too late, %llu damaged and refused; slices of pages on their "
      "way: %llu; evictions %llu\n",
      N(c.pages_read), N(c.pages_lost), N(c.pages_damaged), N(c.slices_read), N(o.evictions));
  std::printf(
      "disk: %llu reads, %llu writes, %llu faults, %llu cancelled, %llu sectors lost with "
      "the power; quarantined %llu\n",
      N(o.disk.reads), N(o.disk.writes), N(o.disk.faults), N(o.disk.cancels),
      N(o.disk.lost_sectors), N(o.quarantined));
  std::printf("boots %llu, power losses %llu, pages recovered %llu, pauses %llu; stopped at:",
              N(o.boots), N(o.power_losses), N(o.recovered_pages), N(o.pauses));
  for (size_t i = 1; i < kNumFailpoints; ++i)
    std::printf(" %s %llu%s", kFailpointNames[i], N(o.failpoints[i]),
                i + 1 < kNumFailpoints ? "," : "\n");
  std::fflush(stdout);
}

TEST(Simulation, EverySeedKeepsItsInvariants) {
  const ScratchFolder folder;
  Outcome sum;
  for (uint64_t seed = arguments.first; seed <= arguments.last; ++seed) {
    const Outcome outcome = RunSeed(seed, folder.path());
    Add(outcome, &sum);
    if (arguments.is_verbose) std::printf("seed %llu: trace %016llx\n", N(seed), N(outcome.trace));
    ASSERT_TRUE(outcome.failure.empty())
        << "seed " << seed << ": " << outcome.failure << "\nrerun: sim_test --seeds " << seed;
  }
  std::printf("seeds %llu to %llu\n", N(arguments.first), N(arguments.last));
  Print(sum);
  // What the seeds are there to meet.
  const uint64_t seeds = arguments.last - arguments.first + 1;
  if (seeds < 1000) return;
  for (size_t i = 1; i < kNumFailpoints; ++i)
    EXPECT_GE(sum.failpoints[i], 20u) << "too few stops " << kFailpointNames[i];
  EXPECT_GT(sum.clients.pages_read, 20 * seeds);
  EXPECT_GT(sum.clients.slices_read, seeds);
  EXPECT_GT(sum.evictions, 10 * seeds);
  EXPECT_GT(sum.recovered_pages, seeds);
  EXPECT_GT(sum.clients.pages_damaged, 0u);
  EXPECT_GT(sum.clients.pages_lost, 0u);
  EXPECT_GT(sum.clients.zombie_writes, seeds / 100);
}

TEST(Simulation, ASeedAlwaysDoesTheSame) {
  const ScratchFolder folder;
  for (uint64_t seed = arguments.first; seed < arguments.first + 2 * Scenario::kNumFamilies;
       ++seed) {
    EXPECT_EQ(RunSeed(seed, folder.path()).trace, RunSeed(seed, folder.path()).trace)
        << "seed " << seed;
  }
}

bool Parse(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "-v") == 0) {
      arguments.is_verbose = true;
    } else if (std::strcmp(argv[i], "--seeds") == 0 && i + 1 < argc) {
      char* end = nullptr;
      arguments.first = arguments.last = std::strtoull(argv[++i], &end, 10);
      if (*end == '-') arguments.last = std::strtoull(end + 1, &end, 10);
      if (*end != 0 || arguments.last < arguments.first) return false;
    } else {
      return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace kvstore::sim

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (!kvstore::sim::Parse(argc, argv)) {
    std::fprintf(stderr, "usage: sim_test [--seeds A[-B]] [-v]\n");
    return 2;
  }
  return RUN_ALL_TESTS();
}
