// Either side dies at any moment.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

#include "tests/integration/daemon_process.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::HottestTier;
using client::Lease;
using client::Namespace;

class ClientDies : public ::testing::TestWithParam<const char*> {};

TEST_P(ClientDies, WhatItHeldIsBackWithinASecond) {
  DaemonProcess daemon;
  daemon.Start();
  std::unique_ptr<Client> client = daemon.Connect();
  absl::StatusOr<Namespace> ns = client->Open("small", SmallSpec());
  ASSERT_TRUE(ns.ok()) << ns.status();
  const std::vector<BlockHash> stored = ns->Hash(Tokens(ns->spec, 8, 1));
  ASSERT_TRUE(client->Put(*ns, stored, PagesBytes(ns->spec, stored)).ok());
  client.reset();
  ASSERT_TRUE(Eventually(absl::Seconds(2), [&] { return daemon.Status().sessions() == 0; }));

  int pipe_fds[2];
  ASSERT_EQ(pipe2(pipe_fds, O_CLOEXEC), 0);
  const std::string program = std::string(getenv("KVSTORE_BIN_DIR")) + "/../tests/crash_client";
  const std::string target = daemon.target();
  const pid_t child = fork();
  if (child == 0) {
    dup2(pipe_fds[1], STDOUT_FILENO);
    execl(program.c_str(), program.c_str(), target.c_str(), GetParam(), nullptr);
    _exit(98);
  }
  close(pipe_fds[1]);
  char ready[5];
  const ssize_t got = read(pipe_fds[0], ready, sizeof ready);
  close(pipe_fds[0]);
  ASSERT_EQ(got, 5) << "the client did not get into its state";
  // It does hold something: otherwise this test shows nothing.
  const std::string state = GetParam();
  ASSERT_TRUE(Eventually(absl::Seconds(2), [&] {
    const v1::StatusResponse status = daemon.Status();
    const bool holds_lease = state != "leased" && state != "copying" ? true : status.leases() > 0;
    const bool holds_reservation =
        state != "reserved" && state != "filled" && state != "committed" && state != "putting"
            ? true
            : status.reservations() > 0;
    return status.sessions() > 0 && holds_lease && holds_reservation;
  }));

  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_TRUE(Eventually(absl::Seconds(1), [&] {
    const v1::StatusResponse status = daemon.Status();
    return status.sessions() == 0 && status.leases() == 0 && status.reservations() == 0;
  })) << daemon.Status().ShortDebugString();
}

INSTANTIATE_TEST_SUITE_P(States, ClientDies,
                         ::testing::Values("session", "leased", "copying", "reserved", "filled",
                                           "committed", "putting", "getting"),
                         [](const auto& state) { return std::string(state.param); });

// A process that was stopped for longer than its lease does not know it: the slot's generation
// tells it.
TEST(ClientPauses, AnExpiredLeaseIsAMissAndNotOtherBytes) {
  DaemonProcess daemon;
  daemon.Start({.sets = {"limits.lease_time=1s"}});
  std::unique_ptr<Client> client = daemon.Connect();
  absl::StatusOr<Namespace> ns = client->Open("small", SmallSpec());
  ASSERT_TRUE(ns.ok()) << ns.status();
  const std::vector<BlockHash> stored = ns->Hash(Tokens(ns->spec, 8, 1));
  ASSERT_TRUE(client->Put(*ns, stored, PagesBytes(ns->spec, stored)).ok());
  const std::string program = std::string(getenv("KVSTORE_BIN_DIR")) + "/../tests/crash_client";
  const std::string target = daemon.target();
  const pid_t child = fork();
  if (child == 0) {
    execl(program.c_str(), program.c_str(), target.c_str(), "paused", nullptr);
    _exit(98);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, WUNTRACED), child);
  ASSERT_TRUE(WIFSTOPPED(status)) << WEXITSTATUS(status);
  EXPECT_TRUE(Eventually(absl::Seconds(5),
                         [&] { return daemon.Status().counters().at("leases_expired") == 1; }));
  // As many other pages as the tier holds: every slot gets another content.
  for (uint32_t seed = 100; seed < 110; ++seed) {
    const std::vector<BlockHash> others = ns->Hash(Tokens(ns->spec, 100, seed));
    EXPECT_TRUE(client->Put(*ns, others, PagesBytes(ns->spec, others)).ok());
  }
  EXPECT_EQ(client->MatchPrefix(*ns, stored)->matched_blocks, 0u)
      << "still there: nothing was shown";
  kill(child, SIGCONT);
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 42) << "40: wrong bytes, 41: right bytes, 43: another error";
}

TEST(DaemonDies, ACopyEndsWithItsBytesOrAStatusAndTheClientComesBack) {
  DaemonProcess daemon;
  daemon.Start();
  std::unique_ptr<Client> client = daemon.Connect();
  absl::StatusOr<Namespace> ns = client->Open("small", SmallSpec());
  ASSERT_TRUE(ns.ok());
  const std::vector<BlockHash> hashes = ns->Hash(Tokens(ns->spec, 64, 1));
  const std::vector<std::byte> expected = PagesBytes(ns->spec, hashes);
  std::mt19937 random(7);
  for (int round = 0; round < 5; ++round) {
    SCOPED_TRACE(round);
    ASSERT_TRUE(client->WaitConnected(absl::Now() + absl::Seconds(10)).ok());
    ASSERT_TRUE(client->Open("small", SmallSpec()).ok());
    ASSERT_TRUE(client->Put(*ns, hashes, expected).ok());
    std::atomic<bool> stop{false};
    std::atomic<int> wrong{0}, late{0}, good{0}, failed{0};
    std::thread reader([&] {
      std::vector<std::byte> pages(expected.size());
      while (!stop) {
        const absl::Time start = absl::Now();
        absl::StatusOr<client::GetResult> got =
            client->Get(*ns, hashes, pages, start + absl::Seconds(1));
        if (absl::Now() - start > absl::Milliseconds(1250)) ++late;
        if (!got.ok()) {
          ++failed;
          continue;
        }
        ++good;
        const size_t bytes = got->delivered_blocks * ns->spec.shape.page_bytes();
        if (!std::equal(pages.begin(), pages.begin() + static_cast<ptrdiff_t>(bytes),
                        expected.begin()))
          ++wrong;
      }
    });
    absl::SleepFor(absl::Milliseconds(20 + random() % 60));
    daemon.KillHard();
    absl::SleepFor(absl::Milliseconds(100));
    EXPECT_FALSE(client->MatchPrefix(*ns, hashes, absl::Now() + absl::Seconds(1)).ok());
    daemon.Start();
    absl::SleepFor(absl::Milliseconds(100));
    stop = true;
    reader.join();
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(late, 0);
    EXPECT_GT(good, 0);
  }
}

TEST(DaemonDies, LeasedPagesStayReadableAndNothingNewIsPromised) {
  DaemonProcess daemon;
  daemon.Start();
  std::unique_ptr<Client> client = daemon.Connect();
  absl::StatusOr<Namespace> ns = client->Open("small", SmallSpec());
  ASSERT_TRUE(ns.ok());
  const std::vector<BlockHash> hashes = ns->Hash(Tokens(ns->spec, 4, 1));
  ASSERT_TRUE(client->Put(*ns, hashes, PagesBytes(ns->spec, hashes)).ok());
  absl::StatusOr<Lease> lease = client->Acquire(*ns, hashes, HottestTier::kDram);
  ASSERT_TRUE(lease.ok());
  std::vector<std::byte> page(ns->spec.shape.page_bytes());
  ASSERT_TRUE(
      lease->CopyPage(0, page.data(), absl::Now() + absl::Seconds(1)).ok());  // its slab is mapped
  absl::StatusOr<client::Reservation> reservation = client->Reserve(
      *ns, {.parent = hashes[3], .first_block_index = 4, .hashes = std::span(hashes).first(1)});
  daemon.KillHard();
  ASSERT_TRUE(Eventually(absl::Seconds(1), [&] { return !client->has_shared_memory(); }));
  EXPECT_TRUE(lease->CopyPage(1, page.data(), absl::Now() + absl::Seconds(1)).ok());
  EXPECT_EQ(page, PageBytes(ns->spec, hashes[1]));
  const absl::Time start = absl::Now();
  EXPECT_EQ(
      client->Acquire(*ns, hashes, HottestTier::kDram, start + absl::Seconds(1)).status().code(),
      absl::StatusCode::kUnavailable);
  EXPECT_LT(absl::Now() - start, absl::Milliseconds(1250));
}

TEST(DaemonDies, AClientWithoutADaemonSaysWhatIsWrong) {
  std::unique_ptr<Client> client = *Client::Create({.target = "unix:/tmp/no-such-folder/kv.sock"});
  const absl::Time start = absl::Now();
  absl::Status status = client->WaitConnected(start + absl::Milliseconds(300));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("there is no socket"), std::string::npos) << status;
  EXPECT_LT(absl::Now() - start, absl::Seconds(1));
}

}  // namespace
}  // namespace kvstore::testing
