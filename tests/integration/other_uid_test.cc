// Clients of another uid, or of none: who may connect, and as whom.
#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>

#include "kvstore/client/channel.h"
#include "kvstore/v1/admin.grpc.pb.h"
#include "kvstore/v1/kvstore.grpc.pb.h"
#include "tests/integration/daemon_process.h"
#include "tests/integration/raw_socket.h"

namespace kvstore::testing {
namespace {

using client::Client;
using client::Namespace;

constexpr uid_t kOtherUid = 54321;

// Runs `body` in a child with another uid (root only); its return value is the exit code.
int RunAs(uid_t uid, gid_t gid, const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    if (setresgid(gid, gid, gid) != 0 || setresuid(uid, uid, uid) != 0) _exit(99);
    _exit(body());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

class OtherUid : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root to become another uid";
  }
  // The group of the socket is ours (root's): a child that keeps it reaches the socket, and the uid
  // decides.
  void OpenFolder() { chmod(daemon_.folder().c_str(), 0750); }
  DaemonProcess daemon_;
};

TEST_F(OtherUid, NotAllowedIsClosedBeforeAByteIsParsed) {
  daemon_.Start({.sets = {"auth.allow_uids=60000"}});
  OpenFolder();
  const std::string path = daemon_.socket_path();
  const int code = RunAs(kOtherUid, 0, [&] {
    UniqueFd fd = ConnectRaw(path, SOCK_STREAM);
    if (!fd.is_open()) return 2;
    if (!IsHungUp(fd, 2000)) return 3;  // without our having said a word
    UniqueFd memory = ConnectRaw(path + kMemorySocketSuffix, SOCK_SEQPACKET);
    if (!memory.is_open()) return 4;
    if (!IsHungUp(memory, 2000)) return 5;
    return 0;
  });
  EXPECT_EQ(code, 0);
  EXPECT_GE(daemon_.Status().counters().at("connections_refused_uid"), 1u);
}

TEST_F(OtherUid, WithoutAllowUidsTheSocketIsOursAlone) {
  daemon_.Start();
  struct stat st;
  ASSERT_EQ(stat(daemon_.socket_path().c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0600u);
  ASSERT_EQ(stat((daemon_.socket_path() + ".mem").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0600u);
}

TEST_F(OtherUid, AnAllowedUidIsItsOwnTenantAndNoOther) {
  daemon_.Start({.sets = {"auth.allow_uids=" + std::to_string(kOtherUid)}});
  OpenFolder();
  const std::string target = daemon_.target();
  std::unique_ptr<Client> owner = daemon_.Connect();
  ASSERT_TRUE(owner->WaitConnected(absl::Now() + absl::Seconds(5)).ok());
  ASSERT_TRUE(owner->Open("shared-name", SmallSpec()).ok());
  // A fresh process: gRPC does not survive a fork.
  const std::string program = std::string(getenv("KVSTORE_BIN_DIR")) + "/../tests/other_uid_client";
  // By descriptor: the other uid may not be able to reach the build folder.
  UniqueFd file(open(program.c_str(), O_RDONLY));
  ASSERT_TRUE(file.is_open()) << program;
  const int code = RunAs(kOtherUid, 0, [&] {
    char* argv[] = {const_cast<char*>(program.c_str()), const_cast<char*>(target.c_str()), nullptr};
    fexecve(file.get(), argv, environ);
    return 98;
  });
  EXPECT_EQ(code, 0) << "see other_uid_client.cc for the number";
}

TEST(NoUid, IsTenantDefaultAndFindsNoAdmin) {
  DaemonProcess daemon;
  const std::string address = "tcp:127.0.0.1:" + std::to_string(20000 + getpid() % 20000);
  daemon.Start(
      {.sets = {"server.listen=" + daemon.target() + "," + address, "server.insecure=true"}});
  auto channel = *client::MakeChannel(address);
  auto admin = v1::Admin::NewStub(channel);
  const auto deadline = std::chrono::system_clock::now() + std::chrono::seconds(5);
  grpc::ClientContext context;
  context.set_deadline(deadline);
  v1::StatusResponse response;
  EXPECT_EQ(admin->Status(&context, v1::StatusRequest(), &response).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  auto data = v1::KvStore::NewStub(channel);
  grpc::ClientContext other;
  other.set_deadline(deadline);
  other.AddMetadata(client::kTenantMetadata, "somebody");
  v1::MatchRequest request;
  request.mutable_namespace_()->set_name("x");
  v1::MatchResponse match;
  EXPECT_EQ(data->Match(&other, request, &match).error_code(), grpc::StatusCode::PERMISSION_DENIED);
}

}  // namespace
}  // namespace kvstore::testing
