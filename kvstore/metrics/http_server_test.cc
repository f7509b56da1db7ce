#include "kvstore/metrics/http_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <vector>

#include "absl/time/clock.h"
#include "kvstore/base/unique_fd.h"

namespace kvstore::metrics {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr absl::Duration kTime = absl::Milliseconds(500);

class HttpServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    HttpPages pages;
    pages["/page"] = [this] {
      ++pages_made_;
      return HttpAnswer{.code = 200, .content_type = "text/plain", .body = body_};
    };
    auto server = HttpServer::Start({}, std::move(pages), clock_, kTime);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  UniqueFd Connect() const {
    UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(server_->port());
    if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) fd.Reset();
    return fd;
  }
  // What the server sends until it closes; empty: nothing in that `time`.
  static std::string ReadAll(const UniqueFd& fd, absl::Duration time = absl::Seconds(10)) {
    std::string all;
    const absl::Time end = absl::Now() + time;
    for (;;) {
      pollfd waiting{.fd = fd.get(), .events = POLLIN, .revents = 0};
      const int left = static_cast<int>(absl::ToInt64Milliseconds(end - absl::Now()));
      if (left <= 0 || poll(&waiting, 1, left) <= 0) return all;
      char piece[4096];
      const ssize_t got = recv(fd.get(), piece, sizeof piece, 0);
      if (got <= 0) return all;
      all.append(piece, static_cast<size_t>(got));
    }
  }
  std::string Ask(const std::string& request) const {
    const UniqueFd fd = Connect();
    EXPECT_EQ(send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(request.size()));
    return ReadAll(fd);
  }

  MonotonicClock clock_;
  std::string body_ = "hello\n";
  std::atomic<int> pages_made_{0};
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, GetAndHeadOfAPage) {
  const std::string got = Ask("GET /page HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(got, StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(got, HasSubstr("Connection: close"));
  EXPECT_THAT(got, HasSubstr("\r\n\r\nhello\n"));
  const std::string head = Ask("HEAD /page HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(head, StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(head, ::testing::Not(HasSubstr("hello")));
  EXPECT_THAT(Ask("GET /page?x=1 HTTP/1.1\r\nHost: x\r\n\r\n"), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, OtherPathsMethodsAndBodiesAreRefusedWithoutAPage) {
  EXPECT_THAT(Ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), HasSubstr("there are: /page"));
  EXPECT_THAT(Ask("GET /page/../page HTTP/1.1\r\nHost: x\r\n\r\n"), StartsWith("HTTP/1.1 404"));
  for (const char* method : {"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"}) {
    EXPECT_THAT(
        Ask(std::string(method) + " /page HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
        StartsWith("HTTP/1.1 4"))
        << method;
  }
  EXPECT_THAT(Ask("POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: 4294967295\r\n\r\nabc"),
              StartsWith("HTTP/1.1 405"));
  EXPECT_EQ(pages_made_, 0);
}

TEST_F(HttpServerTest, GarbageAndLongHeadersAreRefused) {
  EXPECT_THAT(Ask(std::string(100, '\x01') + "\r\n\r\n"), ::testing::Not(HasSubstr("200")));
  const std::string long_header = "GET /page HTTP/1.1\r\nHost: x\r\nX: " + std::string(5000, 'a') +
                                  "\r\nY: " + std::string(5000, 'b') + "\r\n\r\n";
  EXPECT_THAT(Ask(long_header), StartsWith("HTTP/1.1 4"));
  EXPECT_EQ(pages_made_, 0);
}

// More silent and dripping connections than there are places: a scraper gets its turn when their
// time is over, not when they please.
TEST_F(HttpServerTest, SlowClientsHoldTheirPlaceForABoundedTime) {
  std::vector<UniqueFd> slow;
  for (unsigned i = 0; i < 2 * HttpServer::kConnectionsMax; ++i) {
    slow.push_back(Connect());
    ASSERT_TRUE(slow.back().is_open());
  }
  const UniqueFd scraper = Connect();
  const std::string request = "GET /page HTTP/1.1\r\nHost: x\r\n\r\n";
  send(scraper.get(), request.data(), request.size(), MSG_NOSIGNAL);
  const absl::Time start = absl::Now();
  std::string got;
  while (got.empty() && absl::Now() - start < absl::Seconds(30)) {
    for (const UniqueFd& fd : slow) send(fd.get(), "G", 1, MSG_NOSIGNAL);  // not silent
    got = ReadAll(scraper, absl::Milliseconds(100));
  }
  EXPECT_THAT(got, StartsWith("HTTP/1.1 200"));
  // Two rounds of slow ones are before it.
  EXPECT_LT(absl::Now() - start, 3 * kTime + absl::Seconds(5));
}

TEST_F(HttpServerTest, AClientThatDoesNotReadIsClosed) {
  body_.assign(32 << 20, 'x');  // more than the socket buffers hold
  const UniqueFd fd = Connect();
  const std::string request = "GET /page HTTP/1.1\r\nHost: x\r\n\r\n";
  send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL);
  absl::SleepFor(2 * kTime);
  EXPECT_LT(ReadAll(fd).size(), body_.size());
}

TEST(HttpAddress, IsLoopbackWithAPort) {
  EXPECT_EQ(ParseHttpAddress("127.0.0.1:9100")->port, 9100);
  EXPECT_TRUE(ParseHttpAddress("[::1]:0")->is_ipv6);
  EXPECT_TRUE(ParseHttpAddress("localhost:80").ok());
  for (const char* bad : {"", "9100", "0.0.0.0:9100", "[::]:1", "127.0.0.1:", "127.0.0.1:65536",
                          "127.0.0.1:-1", "127.0.0.1:9100 ", "10.0.0.1:9100", "example.com:80"}) {
    EXPECT_FALSE(ParseHttpAddress(bad).ok()) << bad;
  }
}

TEST(HttpStart, APortInUseIsSaid) {
  MonotonicClock clock;
  auto first = HttpServer::Start({}, {}, clock);
  ASSERT_TRUE(first.ok()) << first.status();
  auto second = HttpServer::Start({.port = (*first)->port()}, {}, clock);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists) << second.status();
}

}  // namespace
}  // namespace kvstore::metrics
