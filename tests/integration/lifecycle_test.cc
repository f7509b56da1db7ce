// Starting, stopping and configuring the real daemon.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "kvstore/client/channel.h"
#include "kvstore/v1/admin.grpc.pb.h"
#include "tests/integration/daemon_process.h"
#include "tests/integration/raw_socket.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::Namespace;
using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(Start, ASocketInUseIsRefusedAndTheFirstDaemonGoesOn) {
  DaemonProcess first;
  first.Start();
  DaemonProcess second;
  EXPECT_EQ(second.RunToExit(
                {"--set", "server.listen=" + first.target(), "--set", "tier.dram.bytes=16MiB"}),
            1);
  EXPECT_THAT(second.Log(),
              AllOf(HasSubstr("in use by a running kvstored"), HasSubstr(first.socket_path())));
  std::unique_ptr<Client> client = first.Connect();
  EXPECT_TRUE(client->WaitConnected(absl::Now() + absl::Seconds(5)).ok());
}

TEST(Start, ASocketOfAnotherProgramIsRefused) {
  DaemonProcess daemon;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, daemon.socket_path().c_str(), sizeof address.sun_path - 1);
  UniqueFd other(socket(AF_UNIX, SOCK_STREAM, 0));
  ASSERT_EQ(bind(other.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(listen(other.get(), 1), 0);
  EXPECT_EQ(daemon.RunToExit(
                {"--set", "server.listen=" + daemon.target(), "--set", "tier.dram.bytes=16MiB"}),
            1);
  EXPECT_THAT(daemon.Log(), HasSubstr("in use by a running program"));
}

TEST(Start, ASocketLeftByAKilledDaemonIsReplaced) {
  DaemonProcess daemon;
  daemon.Start();
  daemon.KillHard();
  struct stat st;
  ASSERT_EQ(stat(daemon.socket_path().c_str(), &st), 0) << "the stale socket is there";
  daemon.Start();
}

TEST(Start, AFileInTheWayIsNotTouched) {
  DaemonProcess daemon;
  std::ofstream(daemon.socket_path()) << "precious";
  EXPECT_EQ(daemon.RunToExit(
                {"--set", "server.listen=" + daemon.target(), "--set", "tier.dram.bytes=16MiB"}),
            1);
  EXPECT_THAT(daemon.Log(), HasSubstr("not a socket"));
  std::string content;
  std::ifstream(daemon.socket_path()) >> content;
  EXPECT_EQ(content, "precious");
}

TEST(Start, AFolderThatOthersCanWriteToIsRefused) {
  DaemonProcess daemon;
  ASSERT_EQ(chmod(daemon.folder().c_str(), 0777), 0);
  EXPECT_EQ(daemon.RunToExit(
                {"--set", "server.listen=" + daemon.target(), "--set", "tier.dram.bytes=16MiB"}),
            1);
  EXPECT_THAT(daemon.Log(), HasSubstr("can be written by others"));
}

TEST(Start, AMissingFolderIsMadeForUsAlone) {
  DaemonProcess daemon;
  const std::string folder = daemon.folder() + "/run";
  daemon.Start({.sets = {"server.listen=" + daemon.target() + ",unix:" + folder + "/b.sock"}});
  struct stat st;
  ASSERT_EQ(stat(folder.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0700u);
}

TEST(Start, TcpBeyondLoopbackIsRefused) {
  for (const char* address :
       {"tcp:0.0.0.0:7000", "tcp:10.0.0.1:7000", "tcp:[::]:7000", "tcp:example.com:7000"}) {
    DaemonProcess daemon;
    EXPECT_EQ(daemon.RunToExit({"--set", std::string("server.listen=") + address, "--set",
                                "tier.dram.bytes=16MiB"}),
              2)
        << address;
    EXPECT_THAT(daemon.Log(), AllOf(HasSubstr("loopback"), HasSubstr("TLS"))) << address;
  }
}

TEST(Start, BadConfigurationIsExitCode2) {
  DaemonProcess daemon;
  EXPECT_EQ(daemon.RunToExit({"--set", "tier.dram.bites=1GiB"}), 2);
  EXPECT_THAT(daemon.Log(),
              AllOf(HasSubstr("tier.dram.bites"), HasSubstr("1GiB"), HasSubstr("tier.dram.bytes")));
  EXPECT_EQ(daemon.RunToExit({"--config", "/nonexistent.toml"}), 2);
  EXPECT_EQ(daemon.RunToExit({"--no-such-flag"}), 2);
  EXPECT_EQ(daemon.RunToExit({"--check-config"}), 0);
  EXPECT_EQ(daemon.RunToExit({"--version"}), 0);
  EXPECT_EQ(daemon.RunToExit({"--help"}), 0);
}

TEST(Stop, SigtermUnderLoadEndsWithZeroWithinTenSeconds) {
  DaemonProcess daemon;
  daemon.Start();
  std::unique_ptr<Client> client = daemon.Connect();
  absl::StatusOr<Namespace> ns = client->Open("small", SmallSpec());
  ASSERT_TRUE(ns.ok());
  std::atomic<bool> stop{false};
  std::atomic<uint32_t> stored{0};
  std::vector<std::thread> writers;
  for (uint32_t w = 0; w < 2; ++w) {
    writers.emplace_back([&, w] {
      for (uint32_t i = 0; !stop; ++i) {
        const std::vector<BlockHash> hashes = ns->Hash(Tokens(ns->spec, 16, 1000 * (w + 1) + i));
        if (client->Put(*ns, hashes, PagesBytes(ns->spec, hashes), absl::Now() + absl::Seconds(1))
                .ok())
          ++stored;
      }
    });
  }
  ASSERT_TRUE(Eventually(absl::Seconds(5), [&] { return stored > 10; }));
  daemon.Signal(SIGTERM);
  EXPECT_EQ(daemon.WaitExit(absl::Seconds(10)), 0);
  stop = true;
  for (std::thread& writer : writers) writer.join();
  struct stat st;
  EXPECT_NE(stat(daemon.socket_path().c_str(), &st), 0) << "the socket is removed";
}

TEST(Reload, TheLogLevelChangesAndTheRestIsNamed) {
  DaemonProcess daemon;
  const std::string file = daemon.folder() + "/kvstored.toml";
  std::ofstream(file) << "[log]\nlevel = \"info\"\n";
  // Start() gives --set; the file comes beside it.
  daemon.Start({.sets = {}, .open_files = 0, .arguments = {"--config", file}});
  std::ofstream(file) << "[log]\nlevel = \"debug\"\n[limits]\ncalls = 7\n";
  daemon.Signal(SIGHUP);
  EXPECT_TRUE(Eventually(absl::Seconds(5), [&] {
    return daemon.Log().find("configuration reloaded") != std::string::npos;
  }));
  EXPECT_THAT(daemon.Log(),
              AllOf(HasSubstr("changed=log.level"), HasSubstr("needs_restart=limits.calls")));
  std::ofstream(file) << "[log]\nlevel = \"loud\"\n";
  daemon.Signal(SIGHUP);
  EXPECT_TRUE(Eventually(absl::Seconds(5), [&] {
    return daemon.Log().find("the old one stays") != std::string::npos;
  }));
  EXPECT_EQ(daemon.Status().health(), v1::StatusResponse::HEALTH_SERVING);
}

TEST(Notify, SystemdLearnsWhenWeAreReadyAndStopping) {
  DaemonProcess daemon;
  const std::string path = daemon.folder() + "/notify";
  UniqueFd fd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
  ASSERT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  setenv("NOTIFY_SOCKET", path.c_str(), 1);
  daemon.Start();
  unsetenv("NOTIFY_SOCKET");
  const auto receive = [&] {
    char text[64];
    const ssize_t got = recv(fd.get(), text, sizeof text, 0);
    return std::string(text, got > 0 ? static_cast<size_t>(got) : 0);
  };
  EXPECT_EQ(receive(), "READY=1");
  daemon.Signal(SIGTERM);
  EXPECT_EQ(receive(), "STOPPING=1");
  EXPECT_EQ(daemon.WaitExit(absl::Seconds(10)), 0);
}

TEST(Config, EffectiveValuesAndSourcesAreServed) {
  DaemonProcess daemon;
  daemon.Start({.sets = {"limits.lease_time=7s"}});
  auto stub = v1::Admin::NewStub(*client::MakeChannel(*client::AdminTarget(daemon.target())));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  v1::ConfigResponse response;
  ASSERT_TRUE(stub->Config(&context, v1::ConfigRequest(), &response).ok());
  std::string lease_time, evict;
  for (const auto& value : response.values()) {
    if (value.key() == "limits.lease_time") lease_time = value.value() + " " + value.source();
    if (value.key() == "policy.evict") evict = value.value() + " " + value.source();
  }
  EXPECT_EQ(lease_time, "7s --set");
  EXPECT_EQ(evict, "lru default");
}

// A client that is alone in its process takes gRPC's callback threads down with it, and its last
// owner may be a call that has just been answered on one of them.
TEST(Clients, ComeAndGoWhileTheirLastReplyIsStillHandled) {
  DaemonProcess daemon;
  daemon.Start();
  for (uint32_t i = 0; i < 200; ++i) {
    std::unique_ptr<Client> client = daemon.Connect();
    absl::StatusOr<Namespace> ns = client->Open("small", SmallSpec());
    ASSERT_TRUE(ns.ok()) << ns.status();
    const std::vector<BlockHash> hashes = ns->Hash(Tokens(ns->spec, 2, i));
    ASSERT_TRUE(client->Put(*ns, hashes, PagesBytes(ns->spec, hashes)).ok());
    ASSERT_TRUE(client->Acquire(*ns, hashes, client::HottestTier::kDram).ok());
  }
}

TEST(Leases, AreRenewedWhileTheyAreHeld) {
  DaemonProcess daemon;
  daemon.Start({.sets = {"limits.lease_time=1s"}});
  std::unique_ptr<Client> client = daemon.Connect();
  absl::StatusOr<Namespace> ns = client->Open("small", SmallSpec());
  ASSERT_TRUE(ns.ok());
  const std::vector<BlockHash> hashes = ns->Hash(Tokens(ns->spec, 2, 1));
  ASSERT_TRUE(client->Put(*ns, hashes, PagesBytes(ns->spec, hashes)).ok());
  absl::StatusOr<client::Lease> lease = client->Acquire(*ns, hashes, client::HottestTier::kDram);
  ASSERT_TRUE(lease.ok());
  absl::SleepFor(absl::Milliseconds(2500));  // twice the lease time, which is what is being tested
  EXPECT_EQ(daemon.Status().leases(), 1u);
  EXPECT_EQ(daemon.Status().counters().at("leases_expired"), 0u);
}

}  // namespace
}  // namespace kvstore::testing
