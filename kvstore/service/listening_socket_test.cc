#include "kvstore/service/listening_socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstring>
#include <filesystem>
#include <vector>

namespace kvstore::service {
namespace {

class UnixListener : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = "/tmp/listening-test-XXXXXX";
    folder_ = mkdtemp(pattern.data());
    path_ = folder_ + "/s.sock";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  absl::StatusOr<ListeningSocket> Bind(SocketAudience audience = SocketAudience::kOwnerOnly) {
    if (!lock_.has_value()) lock_ = *SocketPathLock::Take(path_, audience);
    return ListeningSocket::BindUnix(path_, SocketType::kStream, audience, *lock_);
  }
  UniqueFd Connect() {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path_.c_str(), sizeof address.sun_path - 1);
    UniqueFd fd(socket(AF_UNIX, SOCK_STREAM, 0));
    EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    return fd;
  }
  mode_t ModeOf(const std::string& path) {
    struct stat st {};
    stat(path.c_str(), &st);
    return st.st_mode & 0777;
  }

  std::string folder_, path_;
  std::optional<SocketPathLock> lock_;
};

TEST_F(UnixListener, TheSocketsModeDoesNotDependOnTheUmask) {
  const mode_t before = umask(0);
  absl::StatusOr<ListeningSocket> socket = Bind();
  umask(before);
  ASSERT_TRUE(socket.ok()) << socket.status();
  EXPECT_EQ(ModeOf(path_), 0600u);
  EXPECT_EQ(ModeOf(path_ + ".lock"), 0600u);
}

TEST_F(UnixListener, OthersInTheGroupMayReachItWhenAsked) {
  absl::StatusOr<ListeningSocket> socket = Bind(SocketAudience::kGroup);
  ASSERT_TRUE(socket.ok());
  EXPECT_EQ(ModeOf(path_), 0660u);
}

TEST_F(UnixListener, ThePathIsLockedWhileItIsHeld) {
  ASSERT_TRUE(Bind().ok());
  EXPECT_EQ(SocketPathLock::Take(path_, SocketAudience::kOwnerOnly).status().code(),
            absl::StatusCode::kAlreadyExists);
  lock_.reset();
  EXPECT_TRUE(SocketPathLock::Take(path_, SocketAudience::kOwnerOnly).ok());
}

TEST_F(UnixListener, TheFileGoesWithTheListener) {
  { ASSERT_TRUE(Bind().ok()); }
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(UnixListener, ALockFileThatIsALinkIsNotFollowed) {
  std::filesystem::create_symlink("/etc/passwd", path_ + ".lock");
  EXPECT_FALSE(SocketPathLock::Take(path_, SocketAudience::kOwnerOnly).ok());
}

TEST_F(UnixListener, WithoutDescriptorsConnectionsAreShedAndLaterOnesAccepted) {
  absl::StatusOr<ListeningSocket> socket = Bind();
  ASSERT_TRUE(socket.ok());
  std::vector<UniqueFd> clients;
  for (int i = 0; i < 3; ++i) clients.push_back(Connect());
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  std::vector<UniqueFd> all;
  const rlimit few{.rlim_cur = 128, .rlim_max = limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  for (int fd = open("/dev/null", O_RDONLY); fd >= 0; fd = open("/dev/null", O_RDONLY))
    all.emplace_back(fd);
  UniqueFd accepted;
  EXPECT_EQ(socket->Accept(&accepted), ListeningSocket::AcceptResult::kShed);
  EXPECT_EQ(socket->Accept(&accepted), ListeningSocket::AcceptResult::kShed);
  EXPECT_EQ(socket->shed_connections(), 2u);
  all.clear();
  EXPECT_EQ(socket->Accept(&accepted), ListeningSocket::AcceptResult::kAccepted);
  EXPECT_TRUE(accepted.is_open());
  setrlimit(RLIMIT_NOFILE, &limit);
}

TEST(TcpListener, OnlyLoopbackAddressesAreBound) {
  EXPECT_TRUE(ListeningSocket::BindTcp("127.0.0.1:0", TcpReach::kLoopback).ok());
  EXPECT_TRUE(ListeningSocket::BindTcp("127.8.9.10:0", TcpReach::kLoopback).ok());
  EXPECT_TRUE(ListeningSocket::BindTcp("localhost:0", TcpReach::kLoopback).ok());
  for (const char* address : {"0.0.0.0:0", "[::]:0", "192.168.0.1:0", "1270.0.0.1:0",
                              "example.com:0", "[::ffff:8.8.8.8]:0"}) {
    EXPECT_EQ(ListeningSocket::BindTcp(address, TcpReach::kLoopback).status().code(),
              absl::StatusCode::kInvalidArgument)
        << address;
  }
  EXPECT_FALSE(ListeningSocket::BindTcp("127.0.0.1", TcpReach::kLoopback).ok());
  EXPECT_FALSE(ListeningSocket::BindTcp("127.0.0.1:99999", TcpReach::kLoopback).ok());
  EXPECT_TRUE(ListeningSocket::BindTcp("0.0.0.0:0", TcpReach::kAnywhere).ok());
  EXPECT_FALSE(ListeningSocket::BindTcp("example.com:0", TcpReach::kAnywhere).ok());
}

}  // namespace
}  // namespace kvstore::service
