// Draining a daemon under load: no saves, loads go on, and everything is on NVMe afterwards.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <map>
#include <thread>

#include "kvstore/client/channel.h"
#include "kvstore/v1/admin.grpc.pb.h"
#include "tests/integration/daemon_process.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::Namespace;
using ::testing::HasSubstr;

constexpr size_t kBlocks = 12;

// Write-back, so that without a drain nothing would be on NVMe.
class Drain : public ::testing::Test {
 protected:
  void Start() {
    ASSERT_NO_FATAL_FAILURE(
        daemon_.Start({.sets = {"tier.dram.bytes=128MiB", "policy.write.nvme=back",
                                "tier.nvme.dirs=[\"" + daemon_.folder() + "/nvme\"]",
                                "tier.nvme.bytes=256MiB"}}));
  }
  void PutPrefix(Client& client, const Namespace& ns, uint32_t seed) {
    const std::vector<BlockHash> hashes = ns.Hash(Tokens(ns.spec, kBlocks, seed));
    const auto put = client.Put(ns, hashes, PagesBytes(ns.spec, hashes));
    ASSERT_TRUE(put.ok()) << put.status();
    ASSERT_EQ(put->stored_blocks, kBlocks);
  }
  // Checks that a restarted daemon has every block of prefixes [1, end), right to the byte.
  void ExpectAllPrefixes(uint32_t end) {
    ASSERT_TRUE(Eventually(absl::Seconds(5), [&] { return !daemon_.Status().is_recovering(); }));
    const std::unique_ptr<Client> client = daemon_.Connect();
    const absl::StatusOr<Namespace> ns = client->Open("small", SmallSpec());
    ASSERT_TRUE(ns.ok()) << ns.status();
    for (uint32_t seed = 1; seed < end; ++seed) {
      const std::vector<BlockHash> hashes = ns->Hash(Tokens(ns->spec, kBlocks, seed));
      std::vector<std::byte> pages(hashes.size() * ns->spec.shape.page_bytes());
      const auto got = client->Get(*ns, hashes, pages);
      ASSERT_TRUE(got.ok()) << got.status();
      EXPECT_EQ(got->delivered_blocks, kBlocks) << "prefix " << seed;
      EXPECT_EQ(pages, PagesBytes(ns->spec, hashes)) << "prefix " << seed;
    }
  }
  grpc::Status CallDrain(v1::DrainResponse* last, int* messages = nullptr) {
    auto stub = v1::Admin::NewStub(*client::MakeChannel(*client::AdminTarget(daemon_.target())));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    auto reader = stub->Drain(&context, v1::DrainRequest());
    while (reader->Read(last)) {
      if (messages != nullptr) ++*messages;
    }
    return reader->Finish();
  }
  grpc::Status CallResume(v1::ResumeResponse* response) {
    auto stub = v1::Admin::NewStub(*client::MakeChannel(*client::AdminTarget(daemon_.target())));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    return stub->Resume(&context, v1::ResumeRequest(), response);
  }

  DaemonProcess daemon_;
};

TEST_F(Drain, UnderLoadEverythingThatWasInMemoryIsOnNvme) {
  Start();
  std::unique_ptr<Client> client = daemon_.Connect();
  const absl::StatusOr<Namespace> ns = client->Open("small", SmallSpec());
  ASSERT_TRUE(ns.ok()) << ns.status();
  for (uint32_t seed = 1; seed <= 40; ++seed) PutPrefix(*client, *ns, seed);
  // Readers and a writer that do not stop for the drain.
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> loads{0}, loads_while_draining{0}, wrong{0}, refused{0};
  std::atomic<bool> is_draining{false};
  std::atomic<uint32_t> next_seed{41};
  std::thread reader([&] {
    std::vector<std::byte> pages(kBlocks * ns->spec.shape.page_bytes());
    for (uint32_t seed = 1; !stop; seed = seed % 40 + 1) {
      const std::vector<BlockHash> hashes = ns->Hash(Tokens(ns->spec, kBlocks, seed));
      const bool was_draining = is_draining;
      const auto got = client->Get(*ns, hashes, pages);
      if (!got.ok() || got->delivered_blocks != kBlocks) continue;
      wrong += pages != PagesBytes(ns->spec, hashes);
      ++loads;
      loads_while_draining += was_draining;
    }
  });
  std::unique_ptr<Client> second = daemon_.Connect();
  ASSERT_TRUE(second->WaitConnected(absl::Now() + absl::Seconds(5)).ok());
  std::thread writer([&] {
    while (!stop) {
      const std::vector<BlockHash> hashes = ns->Hash(Tokens(ns->spec, kBlocks, next_seed));
      const auto put = second->Put(*ns, hashes, PagesBytes(ns->spec, hashes));
      if (put.ok() && put->stored_blocks == kBlocks) {
        ++next_seed;
      } else if (absl::IsUnavailable(put.status())) {
        ++refused;
        absl::SleepFor(absl::Milliseconds(5));
      }
    }
  });
  ASSERT_TRUE(Eventually(absl::Seconds(10), [&] { return loads > 5 && next_seed > 45; }));

  v1::DrainResponse drained;
  is_draining = true;
  const grpc::Status status = CallDrain(&drained);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(drained.is_last());
  EXPECT_GE(drained.written_blocks(), 40 * kBlocks);
  EXPECT_EQ(drained.memory_only_blocks(), 0u);
  const v1::StatusResponse now = daemon_.Status();
  EXPECT_EQ(now.health(), v1::StatusResponse::HEALTH_DRAINING);
  EXPECT_TRUE(now.has_drain());
  EXPECT_TRUE(Eventually(absl::Seconds(5), [&] { return refused > 0 && loads_while_draining > 3; }))
      << "loads go on, saves do not";
  stop = true;
  reader.join();
  writer.join();
  EXPECT_EQ(wrong, 0u);

  // No chance to write anything more.
  daemon_.KillHard();
  Start();
  // The prefix that was being saved may be there in part.
  ExpectAllPrefixes(next_seed);
}

TEST_F(Drain, ResumeTakesSavesAgain) {
  Start();
  std::unique_ptr<Client> client = daemon_.Connect();
  const absl::StatusOr<Namespace> ns = client->Open("small", SmallSpec());
  ASSERT_TRUE(ns.ok()) << ns.status();
  v1::ResumeResponse resumed;
  ASSERT_TRUE(CallResume(&resumed).ok());
  EXPECT_FALSE(resumed.was_draining());
  v1::DrainResponse drained;
  ASSERT_TRUE(CallDrain(&drained).ok());
  const std::vector<BlockHash> hashes = ns->Hash(Tokens(ns->spec, kBlocks, 1));
  const auto refused = client->Put(*ns, hashes, PagesBytes(ns->spec, hashes));
  EXPECT_TRUE(absl::IsUnavailable(refused.status())) << refused.status();
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("draining"));
  ASSERT_TRUE(CallResume(&resumed).ok());
  EXPECT_TRUE(resumed.was_draining());
  PutPrefix(*client, *ns, 1);
  const v1::StatusResponse status = daemon_.Status();
  EXPECT_EQ(status.health(), v1::StatusResponse::HEALTH_SERVING);
  EXPECT_FALSE(status.has_drain());
}

// SIGTERM is the same drain.
TEST_F(Drain, SigtermWritesWhatOnlyMemoryHolds) {
  Start();
  std::unique_ptr<Client> client = daemon_.Connect();
  const absl::StatusOr<Namespace> ns = client->Open("small", SmallSpec());
  ASSERT_TRUE(ns.ok()) << ns.status();
  for (uint32_t seed = 1; seed <= 40; ++seed) PutPrefix(*client, *ns, seed);
  daemon_.Signal(SIGTERM);
  ASSERT_EQ(daemon_.WaitExit(absl::Seconds(10)), 0);
  EXPECT_THAT(daemon_.Log(), HasSubstr("memory_only_blocks=0"));
  Start();
  ExpectAllPrefixes(41);
}

TEST_F(Drain, WithoutADurableTierItSaysWhatWillBeLost) {
  daemon_.Start();
  std::unique_ptr<Client> client = daemon_.Connect();
  const absl::StatusOr<Namespace> ns = client->Open("small", SmallSpec());
  ASSERT_TRUE(ns.ok()) << ns.status();
  PutPrefix(*client, *ns, 1);
  v1::DrainResponse drained;
  ASSERT_TRUE(CallDrain(&drained).ok());
  EXPECT_EQ(drained.memory_only_blocks(), kBlocks);
}

}  // namespace
}  // namespace kvstore::testing
