#include "kvstore/metrics/http_server.h"

#include <arpa/inet.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/base/text.h"
#include "kvstore/base/unique_fd.h"

namespace kvstore::metrics {
namespace {

constexpr size_t kConnectionBytes = 8 << 10;

}  // namespace

absl::StatusOr<HttpAddress> ParseHttpAddress(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return absl::InvalidArgumentError("no port");
  const std::string_view host = text.substr(0, colon);
  HttpAddress address{.is_ipv6 = host == "[::1]"};
  if (!address.is_ipv6 && host != "127.0.0.1" && host != "localhost") {
    return absl::InvalidArgumentError(
        "not a loopback address; metrics have no authentication, put a proxy with TLS before them");
  }
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data() + colon + 1, end, address.port);
  if (error != std::errc() || rest != end)
    return absl::InvalidArgumentError("the port is not 0 to 65535");
  return address;
}

struct HttpServer::State {
  struct Connection {
    int fd = -1;
    absl::Time close_at;
  };

  State(HttpPages p, const Clock& c, absl::Duration time)
      : pages(std::move(p)), clock(c), connection_time(time) {}
  ~State();
  absl::Status Listen(const HttpAddress& address);
  void Run();
  int PollTimeoutMs() const;
  void CloseOld();

  static MHD_Result OnRequest(void* self, MHD_Connection* connection, const char* url,
                              const char* method, const char* version, const char* body,
                              size_t* body_bytes, void** context);
  static void OnConnection(void* self, MHD_Connection* connection, void** context,
                           MHD_ConnectionNotificationCode what);
  HttpAnswer AnswerTo(std::string_view method, std::string_view url) const;

  const HttpPages pages;
  const Clock& clock;
  const absl::Duration connection_time;
  UniqueFd wake;  // eventfd: the end
  MHD_Daemon* daemon = nullptr;
  // The server's thread.
  std::map<MHD_Connection*, Connection> connections;
  uint64_t closed = 0;
  std::thread thread;
};

HttpServer::State::~State() {
  if (thread.joinable()) {
    const uint64_t one = 1;
    (void)!write(wake.get(), &one, sizeof one);  // cannot fail: the counter is 0
    thread.join();
  }
  if (daemon != nullptr) MHD_stop_daemon(daemon);
}

// The library has no thread of its own: ours polls its descriptors, so that connections can be
// closed by age, which the library's own timeout (silence) does not do.
absl::Status HttpServer::State::Listen(const HttpAddress& address) {
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  v4.sin_port = htons(address.port);
  sockaddr_in6 v6{};
  v6.sin6_family = AF_INET6;
  v6.sin6_addr = in6addr_loopback;
  v6.sin6_port = htons(address.port);
  const sockaddr* where = address.is_ipv6 ? reinterpret_cast<const sockaddr*>(&v6)
                                          : reinterpret_cast<const sockaddr*>(&v4);
  errno = 0;
  daemon = MHD_start_daemon(
      MHD_USE_EPOLL | (address.is_ipv6 ? MHD_USE_IPv6 : 0), address.port, nullptr, nullptr,
      &State::OnRequest, this, MHD_OPTION_SOCK_ADDR, where, MHD_OPTION_CONNECTION_LIMIT,
      kConnectionsMax, MHD_OPTION_CONNECTION_MEMORY_LIMIT, kConnectionBytes,
      MHD_OPTION_CONNECTION_TIMEOUT, static_cast<unsigned>(absl::ToInt64Seconds(kConnectionTime)),
      MHD_OPTION_NOTIFY_CONNECTION, &State::OnConnection, this, MHD_OPTION_STRICT_FOR_CLIENT, 1,
      MHD_OPTION_END);
  if (daemon == nullptr) {
    const int error = errno;
    const std::string what = absl::StrCat("server.http: port ", address.port);
    if (error == EADDRINUSE) return absl::AlreadyExistsError(absl::StrCat(what, " is in use"));
    return absl::ErrnoToStatus(error == 0 ? EAGAIN : error, what);
  }
  wake.Reset(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!wake.is_open()) return absl::ErrnoToStatus(errno, "server.http: eventfd");
  return absl::OkStatus();
}

void HttpServer::State::Run() {
  const int ready = MHD_get_daemon_info(daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
  for (;;) {
    pollfd waiting[] = {{.fd = ready, .events = POLLIN, .revents = 0},
                        {.fd = wake.get(), .events = POLLIN, .revents = 0}};
    if (poll(waiting, 2, PollTimeoutMs()) < 0 && errno != EINTR) return;
    if ((waiting[1].revents & POLLIN) != 0) return;
    // A full server stops to poll its listener, and takes it up again in the run after the one that
    // closed a connection.
    for (uint64_t before = closed - 1; before != closed;) {
      before = closed;
      MHD_run(daemon);
    }
    CloseOld();
  }
}

int HttpServer::State::PollTimeoutMs() const {
  int64_t ms = -1;
  MHD_UNSIGNED_LONG_LONG wanted = 0;
  if (MHD_get_timeout(daemon, &wanted) == MHD_YES)
    ms = static_cast<int64_t>(std::min<MHD_UNSIGNED_LONG_LONG>(wanted, 60'000));
  for (const auto& [connection, open] : connections) {
    const int64_t left = absl::ToInt64Milliseconds(open.close_at - clock.Now()) + 1;
    ms = ms < 0 ? std::max<int64_t>(left, 0) : std::clamp<int64_t>(left, 0, ms);
  }
  return static_cast<int>(ms);
}

// The library closes the descriptor when it sees the end of the stream.
void HttpServer::State::CloseOld() {
  const absl::Time now = clock.Now();
  for (auto& [connection, open] : connections) {
    if (open.close_at > now) continue;
    shutdown(open.fd, SHUT_RDWR);
    open.close_at = now + connection_time;
  }
}

void HttpServer::State::OnConnection(void* self, MHD_Connection* connection, void**,
                                     MHD_ConnectionNotificationCode what) {
  State& state = *static_cast<State*>(self);
  if (what == MHD_CONNECTION_NOTIFY_CLOSED) {
    state.connections.erase(connection);
    ++state.closed;
    return;
  }
  const int fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
  state.connections[connection] = {.fd = fd, .close_at = state.clock.Now() + state.connection_time};
}

HttpAnswer HttpServer::State::AnswerTo(std::string_view method, std::string_view url) const {
  if (method != "GET" && method != "HEAD")
    return {.code = 405, .content_type = "text/plain", .body = "only GET and HEAD\n"};
  const auto page = pages.find(url);
  if (page != pages.end()) return page->second();
  std::string known = "no such page; there are:";
  for (const auto& [path, make] : pages) known += " " + path;
  return {.code = 404, .content_type = "text/plain", .body = known + "\n"};
}

MHD_Result HttpServer::State::OnRequest(void* self, MHD_Connection* connection, const char* url,
                                        const char* method, const char*, const char*, size_t*,
                                        void**) {
  const HttpAnswer answer = static_cast<const State*>(self)->AnswerTo(method, url);
  MHD_Response* response = MHD_create_response_from_buffer(
      answer.body.size(), const_cast<char*>(answer.body.data()), MHD_RESPMEM_MUST_COPY);
  if (response == nullptr) return MHD_NO;
  MHD_add_response_header(response, "Content-Type", answer.content_type.c_str());
  MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
  MHD_add_response_header(response, "Cache-Control", "no-store");
  MHD_add_response_header(response, "Connection", "close");
  if (answer.code == 405) MHD_add_response_header(response, "Allow", "GET, HEAD");
  const MHD_Result queued =
      MHD_queue_response(connection, static_cast<unsigned>(answer.code), response);
  MHD_destroy_response(response);
  return queued;
}

HttpServer::HttpServer(std::unique_ptr<State> state) : state_(std::move(state)) {}
HttpServer::~HttpServer() = default;

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpAddress& address,
                                                              HttpPages pages, const Clock& clock,
                                                              absl::Duration connection_time) {
  auto state = std::make_unique<State>(std::move(pages), clock, connection_time);
  if (absl::Status listening = state->Listen(address); !listening.ok()) return listening;
  State* raw = state.get();
  raw->thread = std::thread([raw] { raw->Run(); });
  pthread_setname_np(raw->thread.native_handle(), "kv-http");
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(state)));
}

uint16_t HttpServer::port() const {
  return MHD_get_daemon_info(state_->daemon, MHD_DAEMON_INFO_BIND_PORT)->port;
}

}  // namespace kvstore::metrics
