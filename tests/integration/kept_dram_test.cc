// A daemon whose DRAM memory is kept by kvkeep: killed, restarted, drained, configured anew; its
// keeper killed; strangers who speak to its keeper. No NVMe tier: what is found again was in memory.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "kvstore/base/unique_fd.h"
#include "kvstore/client/channel.h"
#include "kvstore/v1/admin.grpc.pb.h"
#include "tests/integration/checked_load.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::Namespace;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kKills = 50;

DaemonOptions Kept(std::vector<std::string> sets = {}) {
  sets.push_back("tier.dram.backing=kept");
  return {.sets = std::move(sets), .keeper = std::vector<std::string>{}};
}

uint64_t RecoveredPages(const DaemonProcess& daemon) {
  const v1::StatusResponse status = daemon.Status();
  for (const auto& tier : status.tiers()) {
    if (tier.tier() == v1::TIER_DRAM) return tier.counters().at("recovered_pages");
  }
  return 0;
}

void PutPrefixes(const DaemonProcess& daemon, uint32_t count) {
  const auto client = daemon.Connect();
  const auto ns = client->Open("kill-loop", SmallSpec());
  ASSERT_TRUE(ns.ok()) << ns.status();
  for (uint32_t prefix = 0; prefix < count; ++prefix) {
    const auto hashes = ns->Hash(Tokens(ns->spec, kLoadBlocks, prefix));
    const auto put = client->Put(*ns, hashes, PagesBytes(ns->spec, hashes));
    ASSERT_TRUE(put.ok()) << put.status();
    ASSERT_EQ(put->stored_blocks, kLoadBlocks);
  }
}
// How many blocks of the first prefixes are served, all of them right.
uint64_t ServedBlocks(const DaemonProcess& daemon, uint32_t count) {
  const auto client = daemon.Connect();
  const auto ns = client->Open("kill-loop", SmallSpec());
  EXPECT_TRUE(ns.ok()) << ns.status();
  uint64_t served = 0;
  for (uint32_t prefix = 0; ns.ok() && prefix < count; ++prefix) {
    const auto hashes = ns->Hash(Tokens(ns->spec, kLoadBlocks, prefix));
    std::vector<std::byte> pages(hashes.size() * ns->spec.shape.page_bytes());
    const auto got = client->Get(*ns, hashes, pages);
    if (!got.ok()) continue;
    const auto expected = PagesBytes(ns->spec, std::span(hashes).first(got->delivered_blocks));
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), pages.begin()))
        << "wrong bytes in prefix " << prefix;
    served += got->delivered_blocks;
  }
  return served;
}

class KeptDram : public ::testing::Test {
 protected:
  void Kill() {
    const pid_t killed = daemon_.daemon_pid();
    ASSERT_GT(killed, 0);
    kill(killed, SIGKILL);
    daemon_.WaitUntilAnotherAnswers(killed);
  }
  void RestartBySignal() {
    const pid_t old = daemon_.daemon_pid();
    daemon_.Signal(SIGUSR1);
    daemon_.WaitUntilAnotherAnswers(old);
  }

  // Of a client that begins now: the first prefix, whole and right.
  bool HasAHit() {
    const auto client = daemon_.Connect();
    if (!client->WaitConnected(absl::Now() + absl::Milliseconds(100)).ok()) return false;
    const absl::Time deadline = absl::Now() + absl::Seconds(1);
    const auto ns = client->Open("kill-loop", SmallSpec(), deadline);
    if (!ns.ok()) return false;
    const auto hashes = ns->Hash(Tokens(ns->spec, kLoadBlocks, 0));
    std::vector<std::byte> pages(hashes.size() * ns->spec.shape.page_bytes());
    const auto got = client->Get(*ns, hashes, pages, deadline);
    if (!got.ok() || got->delivered_blocks < kLoadBlocks) return false;
    EXPECT_EQ(pages, PagesBytes(ns->spec, hashes));
    return true;
  }

  DaemonProcess daemon_;
};

TEST_F(KeptDram, FiftyKillsUnderLoadKeepWhatWasPublished) {
  const uint64_t seed = Seed();
  SCOPED_TRACE("KVSTORE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  daemon_.Start(Kept());
  PutPrefixes(daemon_, 5);
  std::vector<std::unique_ptr<Load>> loads;
  for (int i = 0; i < 2; ++i) loads.push_back(std::make_unique<Load>(daemon_, random()));
  std::vector<double> first_hits_ms;
  uint64_t recovered_before = 0;
  for (int round = 0; round < kKills; ++round) {
    absl::SleepFor(absl::Milliseconds(30 + random() % 300));
    const pid_t killed = daemon_.daemon_pid();
    ASSERT_GT(killed, 0);
    kill(killed, SIGKILL);
    ASSERT_TRUE(Eventually(absl::Seconds(10), [&] {
      const pid_t now = daemon_.daemon_pid();
      return now > 0 && now != killed;
    })) << daemon_.Log();
    // From the start of the next process: a block that was there before is read, and right.
    const absl::Time started = absl::Now();
    ASSERT_TRUE(Eventually(absl::Seconds(10), [&] { return HasAHit(); }))
        << "kill " << round << "\n"
        << daemon_.Log();
    first_hits_ms.push_back(absl::ToDoubleMilliseconds(absl::Now() - started));
    ASSERT_TRUE(Eventually(absl::Seconds(5), [&] { return !daemon_.Status().is_recovering(); }));
    const uint64_t recovered = RecoveredPages(daemon_);
    EXPECT_GE(recovered * 100, recovered_before * 99) << "kill " << round;
    recovered_before = recovered;
  }
  uint64_t checked = 0, expected = 0, served = 0, overruns = 0;
  std::vector<uint32_t> stored;
  for (uint32_t prefix = 0; prefix < kLoadPrefixes; ++prefix) {
    if (std::ranges::any_of(loads, [&](const auto& load) { return load->is_stored(prefix); }))
      stored.push_back(prefix);
  }
  for (const auto& load : loads) {
    checked += load->pages_checked();
    overruns += load->overruns();
  }
  loads.clear();
  const auto client = daemon_.Connect();
  const auto ns = client->Open("kill-loop", SmallSpec());
  ASSERT_TRUE(ns.ok()) << ns.status();
  for (const uint32_t prefix : stored) {
    const auto match = client->MatchPrefix(*ns, ns->Hash(Tokens(ns->spec, kLoadBlocks, prefix)));
    ASSERT_TRUE(match.ok()) << match.status();
    served += match->matched_blocks;
    expected += kLoadBlocks;
  }
  EXPECT_GE(served * 100, expected * 99) << "published blocks were lost";
  EXPECT_GT(expected, 20 * kLoadBlocks) << "the load was too light to show anything";
  EXPECT_GT(checked, 500u) << "the load was too light to show anything";
  EXPECT_EQ(overruns, 0u);
  ServedBlocks(daemon_, kLoadPrefixes);  // every byte that is left
  std::ranges::sort(first_hits_ms);
  std::printf(
      "%d kills: %lu of %lu published blocks found again; first hit p50 %.0f ms, max %.0f ms\n",
      kKills, static_cast<unsigned long>(served), static_cast<unsigned long>(expected),
      first_hits_ms[first_hits_ms.size() / 2], first_hits_ms.back());
  EXPECT_LT(first_hits_ms[first_hits_ms.size() / 2], 1000);
}

TEST_F(KeptDram, ARestartByItsKeeperIsWarmAndADrainBeforeIt) {
  daemon_.Start(Kept());
  PutPrefixes(daemon_, 10);
  RestartBySignal();
  EXPECT_EQ(ServedBlocks(daemon_, 10), 10 * kLoadBlocks);
  EXPECT_THAT(daemon_.Log(), HasSubstr("pages_found=120"));
  // Drained before: it takes no saves any more, and what it had is there.
  auto stub = v1::Admin::NewStub(*client::MakeChannel(*client::AdminTarget(daemon_.target())));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  auto reader = stub->Drain(&context, v1::DrainRequest());
  for (v1::DrainResponse progress; reader->Read(&progress);) {
  }
  ASSERT_TRUE(reader->Finish().ok());
  RestartBySignal();
  EXPECT_EQ(ServedBlocks(daemon_, 10), 10 * kLoadBlocks);
}

// $KVSTORE_KEPT_BLOCKS blocks of 4 KiB: how long after the start of a process one of them is read.
TEST_F(KeptDram, TheFirstHitAmongManyBlocksComesWithinASecond) {
  const char* const text = std::getenv("KVSTORE_KEPT_BLOCKS");
  const size_t num_blocks = text == nullptr ? 20000 : std::strtoull(text, nullptr, 10);
  constexpr size_t kChain = 1000;
  const NamespaceSpec spec = SmallSpec(1, 4096);
  const uint64_t mebibytes = (num_blocks * spec.shape.slot_bytes() >> 20) * 9 / 8 + 64;
  daemon_.Start(Kept({"tier.dram.bytes=" + std::to_string(mebibytes) + "MiB"}));
  {
    const auto client = daemon_.Connect();
    const auto ns = client->Open("many", spec);
    ASSERT_TRUE(ns.ok()) << ns.status();
    for (uint32_t chain = 0; chain < num_blocks / kChain; ++chain) {
      const auto hashes = ns->Hash(Tokens(spec, kChain, 1000 * chain));
      const auto put = client->Put(*ns, hashes, PagesBytes(spec, hashes));
      ASSERT_TRUE(put.ok()) << put.status();
      ASSERT_EQ(put->stored_blocks, kChain);
    }
  }
  std::vector<double> first_hits_ms;
  for (int round = 0; round < 5; ++round) {
    const pid_t killed = daemon_.daemon_pid();
    kill(killed, SIGKILL);
    ASSERT_TRUE(Eventually(absl::Seconds(10), [&] {
      const pid_t now = daemon_.daemon_pid();
      return now > 0 && now != killed;
    }));
    const absl::Time started = absl::Now();
    const auto chain = static_cast<uint32_t>(num_blocks / kChain - 1 - round);
    bool is_right = false;
    ASSERT_TRUE(Eventually(absl::Seconds(10), [&] {
      const auto client = daemon_.Connect();
      if (!client->WaitConnected(absl::Now() + absl::Milliseconds(100)).ok()) return false;
      const auto ns = client->Open("many", spec, absl::Now() + absl::Seconds(2));
      if (!ns.ok()) return false;
      const auto hashes = ns->Hash(Tokens(spec, 8, 1000 * chain));
      std::vector<std::byte> pages(hashes.size() * spec.shape.page_bytes());
      const auto got = client->Get(*ns, hashes, pages);
      if (!got.ok() || got->delivered_blocks == 0) return false;
      const auto expected = PagesBytes(spec, std::span(hashes).first(got->delivered_blocks));
      is_right = std::equal(expected.begin(), expected.end(), pages.begin());
      return true;
    })) << daemon_.Log();
    first_hits_ms.push_back(absl::ToDoubleMilliseconds(absl::Now() - started));
    EXPECT_TRUE(is_right);
    ASSERT_TRUE(Eventually(absl::Seconds(20), [&] { return !daemon_.Status().is_recovering(); }));
    EXPECT_EQ(RecoveredPages(daemon_), num_blocks / kChain * kChain);
  }
  std::ranges::sort(first_hits_ms);
  std::printf("%zu blocks: first hit %.0f to %.0f ms after the start\n", num_blocks,
              first_hits_ms.front(), first_hits_ms.back());
  EXPECT_LT(first_hits_ms.front(), 1000);
}

TEST_F(KeptDram, ClearedBlocksDoNotComeBack) {
  daemon_.Start(Kept());
  PutPrefixes(daemon_, 10);
  {
    const auto client = daemon_.Connect();
    const auto ns = client->Open("kill-loop", SmallSpec());
    ASSERT_TRUE(ns.ok());
    ASSERT_TRUE(client->Clear(*ns).ok());
  }
  Kill();
  EXPECT_EQ(ServedBlocks(daemon_, 10), 0u);
  PutPrefixes(daemon_, 3);
  Kill();
  EXPECT_EQ(ServedBlocks(daemon_, 10), 3 * kLoadBlocks);
}

TEST_F(KeptDram, AnotherSizeOrNoBackingStartsColdAndSaysSo) {
  daemon_.Start(Kept());
  PutPrefixes(daemon_, 5);
  daemon_.SetArguments(Kept({"tier.dram.bytes=96MiB"}));
  RestartBySignal();
  EXPECT_EQ(ServedBlocks(daemon_, 5), 0u);
  EXPECT_THAT(daemon_.Log(), HasSubstr("the DRAM tier starts cold"));
  EXPECT_THAT(daemon_.Log(), HasSubstr("tier.dram.bytes asks for"));
  PutPrefixes(daemon_, 5);
  daemon_.SetArguments({.keeper = std::vector<std::string>{}});
  RestartBySignal();
  EXPECT_EQ(ServedBlocks(daemon_, 5), 0u);
  daemon_.SetArguments(Kept({"tier.dram.bytes=96MiB"}));
  RestartBySignal();
  EXPECT_EQ(ServedBlocks(daemon_, 5), 0u) << "what the daemon without backing was given is gone";
}

TEST_F(KeptDram, WithNvmeBothHaveTheirBlocksAndAClearHoldsInBoth) {
  DaemonOptions options = Kept({"tier.nvme.dirs=[\"" + daemon_.folder() + "/nvme\"]",
                                "tier.nvme.bytes=128MiB", "policy.write.nvme=back"});
  daemon_.Start(options);
  PutPrefixes(daemon_, 5);
  Kill();
  EXPECT_EQ(ServedBlocks(daemon_, 5), 5 * kLoadBlocks) << "nothing of it was on NVMe";
  {
    const auto client = daemon_.Connect();
    const auto ns = client->Open("kill-loop", SmallSpec());
    ASSERT_TRUE(ns.ok());
    ASSERT_TRUE(client->Clear(*ns).ok());
  }
  Kill();
  EXPECT_EQ(ServedBlocks(daemon_, 5), 0u);
}

TEST_F(KeptDram, WhenItsKeeperIsKilledTheDaemonEndsAndTheNextStartIsCold) {
  daemon_.Start(Kept());
  PutPrefixes(daemon_, 5);
  const pid_t orphan = daemon_.daemon_pid();
  daemon_.KillHard();  // kvkeep
  EXPECT_TRUE(Eventually(absl::Seconds(12), [&] { return !IsRunning(orphan); }))
      << "kvstored goes on without a keeper";
  daemon_.Start(Kept());
  EXPECT_EQ(ServedBlocks(daemon_, 5), 0u);
}

TEST_F(KeptDram, SigtermToTheKeeperEndsBoth) {
  daemon_.Start(Kept());
  const pid_t child = daemon_.daemon_pid();
  daemon_.Signal(SIGTERM);
  EXPECT_EQ(daemon_.WaitExit(absl::Seconds(15)), 0);
  EXPECT_FALSE(IsRunning(child));
}

TEST_F(KeptDram, StrangersCanNeitherTakeNorGive) {
  daemon_.Start(Kept());
  PutPrefixes(daemon_, 5);
  // The socket's name is no secret: abstract sockets are listed.
  std::ifstream in("/proc/" + std::to_string(daemon_.daemon_pid()) + "/environ");
  const std::string environment(std::istreambuf_iterator<char>(in), {});
  const size_t at = environment.find("NOTIFY_SOCKET=@");
  ASSERT_NE(at, std::string::npos);
  const std::string name = environment.c_str() + at + std::strlen("NOTIFY_SOCKET=");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name.data() + 1, name.size() - 1);
  const UniqueFd fd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address),
                    static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size())),
            0);
  std::mt19937_64 random(3);
  std::vector<std::string> messages = {"FDSTOREREMOVE=1\nFDNAME=kv.ledger", "READY=1", "",
                                       std::string(60000, 'x'), "FDSTORE=1\nFDNAME=kv.s1"};
  for (int slab = 1; slab < 10; ++slab)
    messages.push_back("FDSTOREREMOVE=1\nFDNAME=kv.s" + std::to_string(slab));
  for (int i = 0; i < 500; ++i) {
    std::string garbage(random() % 300, '\0');
    for (char& c : garbage) c = static_cast<char>(random());
    messages.push_back(std::move(garbage));
  }
  for (const std::string& message : messages) {
    iovec part{const_cast<char*>(message.data()), message.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    cmsghdr* const rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    const int standard_input = 0;
    std::memcpy(CMSG_DATA(rights), &standard_input, sizeof standard_input);
    (void)!sendmsg(fd.get(), &header, MSG_NOSIGNAL);
  }
  const uint64_t files = daemon_.OpenFiles();
  Kill();
  EXPECT_EQ(ServedBlocks(daemon_, 5), 5 * kLoadBlocks);
  EXPECT_LE(daemon_.OpenFiles(), files) << "kvkeep holds what strangers gave it";
  EXPECT_THAT(daemon_.Log(), Not(HasSubstr("not kept")));
}

TEST_F(KeptDram, WithoutAKeeperOrRoomAtItTheStartIsRefusedByName) {
  unsetenv("NOTIFY_SOCKET");
  EXPECT_EQ(daemon_.RunToExit({"--set", "server.listen=" + daemon_.target(), "--set",
                               "tier.dram.bytes=64MiB", "--set", "tier.dram.backing=kept"}),
            2);
  EXPECT_THAT(daemon_.Log(), HasSubstr("NOTIFY_SOCKET is not set"));
  EXPECT_THAT(daemon_.Log(), HasSubstr("kvkeep"));
  DaemonProcess crowded;
  DaemonOptions options = Kept();
  options.keeper = std::vector<std::string>{"--descriptors", "4"};
  crowded.SetArguments(options);
  EXPECT_EQ(crowded.RunToExit({}, options), 2) << "no use in trying again";
  EXPECT_THAT(crowded.Log(), HasSubstr("keeps 4; raise"));
}

}  // namespace
}  // namespace kvstore::testing
