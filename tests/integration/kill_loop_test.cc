// The daemon is killed with SIGKILL at random moments under load, again and again; afterwards every
// byte is checked.
//
// Every page is a function of its block's hash, so whatever a restarted daemon serves can be
// checked without knowing what was stored. The clients keep one Client over all kills: it must come
// back by itself, and a call that meets a dead daemon must end soon.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <random>

#include "tests/integration/checked_load.h"

namespace kvstore::testing {
namespace {

constexpr int kKills = 50;
constexpr int kClients = 2;

uint64_t RecoveredPages(const DaemonProcess& daemon) {
  const v1::StatusResponse status = daemon.Status();
  for (const auto& tier : status.tiers()) {
    if (tier.tier() == v1::TIER_NVME) return tier.counters().at("recovered_pages");
  }
  return 0;
}

TEST(KillLoop, FiftyKillsUnderLoadLeaveNoWrongByteAndKeepWhatWasPublished) {
  const uint64_t seed = Seed();
  SCOPED_TRACE("KVSTORE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  DaemonProcess daemon;
  const DaemonOptions options{.sets = {"tier.dram.bytes=64MiB",
                                       "tier.nvme.dirs=[\"" + daemon.folder() + "/nvme\"]",
                                       "tier.nvme.bytes=256MiB"}};
  daemon.Start(options);
  std::vector<std::unique_ptr<Load>> loads;
  for (int i = 0; i < kClients; ++i) loads.push_back(std::make_unique<Load>(daemon, random()));
  uint64_t recovered_before = 0;
  absl::Duration slowest_return;
  for (int kill = 0; kill < kKills; ++kill) {
    absl::SleepFor(absl::Milliseconds(30 + random() % 300));
    daemon.KillHard();
    daemon.Start(options);
    const absl::Time is_back = absl::Now();
    for (const auto& load : loads) {
      const uint64_t before = load->successes();
      EXPECT_TRUE(Eventually(absl::Seconds(3), [&] { return load->successes() > before; }))
          << "a client did not come back after kill " << kill;
    }
    slowest_return = std::max(slowest_return, absl::Now() - is_back);
    ASSERT_TRUE(Eventually(absl::Seconds(5), [&] { return !daemon.Status().is_recovering(); }))
        << daemon.Log();
    // Nothing is evicted here, so what one start found the next one finds again: 99 in 100 at
    // least.
    const uint64_t recovered = RecoveredPages(daemon);
    EXPECT_GE(recovered * 100, recovered_before * 99) << "kill " << kill << "\n" << daemon.Log();
    recovered_before = recovered;
  }
  uint64_t checked = 0, stored = 0, overruns = 0;
  for (const auto& load : loads) {
    checked += load->pages_checked();
    stored += load->blocks_stored();
    overruns += load->overruns();
    // A second to learn that the daemon is gone, and a half for a busy test machine.
    EXPECT_LT(load->slowest_failure(), absl::Milliseconds(1500));
    std::printf("slowest call that failed %.0f ms, slowest return %.0f ms\n",
                absl::ToDoubleMilliseconds(load->slowest_failure()),
                absl::ToDoubleMilliseconds(slowest_return));
  }
  loads.clear();
  EXPECT_GT(checked, 500u) << "the load was too light to show anything";
  EXPECT_GT(stored, 100u) << "the load was too light to show anything";
  EXPECT_EQ(overruns, 0u) << "calls that returned later than their deadline";

  // Every byte of what is left, once more, from the disk.
  const auto client = daemon.Connect();
  ASSERT_TRUE(client->WaitConnected(absl::Now() + absl::Seconds(5)).ok());
  const NamespaceSpec spec = SmallSpec();
  const auto ns = client->Open("kill-loop", spec);
  ASSERT_TRUE(ns.ok()) << ns.status();
  uint64_t served = 0;
  for (uint32_t prefix = 0; prefix < kLoadPrefixes; ++prefix) {
    const auto hashes = ns->Hash(Tokens(spec, kLoadBlocks, prefix));
    std::vector<std::byte> pages(hashes.size() * spec.shape.page_bytes());
    const auto got = client->Get(*ns, hashes, pages);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(got->delivered_blocks, got->match.matched_blocks)
        << "a published page did not survive";
    const auto expected = PagesBytes(spec, std::span(hashes).first(got->delivered_blocks));
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), pages.begin()))
        << "wrong bytes in prefix " << prefix;
    served += got->delivered_blocks;
  }
  EXPECT_GT(served, kLoadPrefixes * kLoadBlocks / 2);
}

}  // namespace
}  // namespace kvstore::testing
