#include "engine_adapter/serving/http_server.h"

#include <arpa/inet.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <map>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/unique_fd.h"

namespace kvstore::engine {
namespace {

constexpr size_t kConnectionBytes = 32 << 10;
constexpr size_t kStreamBlockBytes = 16 << 10;
// A refused body is read to its end, so that the client reads the answer; beyond this it is not.
constexpr size_t kDiscardedBytesMax = 256 << 20;
constexpr unsigned kSpareConnections = 32;  // the library's limit beyond ours: those being evicted
constexpr absl::Duration kStopTime = absl::Seconds(2);

std::optional<std::string> Field(MHD_Connection* connection, const char* name) {
  const char* value = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, name);
  if (value == nullptr) return std::nullopt;
  return value;
}

}  // namespace

absl::StatusOr<HttpAddress> ParseListenAddress(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return absl::InvalidArgumentError("no port");
  HttpAddress address{.host = std::string(text.substr(0, colon))};
  if (address.host.starts_with("[") && address.host.ends_with("]")) {
    address.host = address.host.substr(1, address.host.size() - 2);
    address.is_ipv6 = true;
  } else if (address.host == "localhost") {
    address.host = "127.0.0.1";
  }
  in6_addr v6{};
  in_addr v4{};
  if (inet_pton(address.is_ipv6 ? AF_INET6 : AF_INET, address.host.c_str(),
                address.is_ipv6 ? static_cast<void*>(&v6) : &v4) != 1) {
    return absl::InvalidArgumentError("the host is neither a numeric address nor localhost");
  }
  address.is_loopback =
      address.is_ipv6 ? IN6_IS_ADDR_LOOPBACK(&v6) != 0 : (ntohl(v4.s_addr) >> 24) == 127;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data() + colon + 1, end, address.port);
  if (error != std::errc() || rest != end) {
    return absl::InvalidArgumentError("the port is not 0 to 65535");
  }
  return address;
}

// The library has no thread of its own: ours polls its descriptors, those of clients that wait for
// an answer (the library does not look at them meanwhile), and an eventfd.
struct HttpServerState {
  struct Connection {
    int fd = -1;
    absl::Time close_at;
    bool has_request = false;
    bool is_closing = false;
  };

  HttpServerState(const HttpServerOptions& o, HttpServer::Callbacks c)
      : options(o), callbacks(std::move(c)) {}
  ~HttpServerState();
  absl::Status Listen();
  void Run();
  bool HasEnded();
  int PollTimeoutMs() const;
  void CloseLate();
  void MakeRoom();
  void RunPoked();
  void LookForHangUps();
  void RunLibrary();

  MHD_Result OnHead(MHD_Connection* connection, std::string_view method, std::string_view path,
                    void** context);
  MHD_Result OnBody(HttpExchange& exchange, std::string_view piece);
  MHD_Result OnWhole(const std::shared_ptr<HttpExchange>& exchange);
  MHD_Result SendAnswer(HttpExchange& exchange);
  MHD_Result SendStream(HttpExchange& exchange);
  void Suspend(HttpExchange& exchange);
  void Resume(HttpExchange& exchange);
  void HangUp(HttpExchange& exchange);
  void Poke(std::shared_ptr<HttpExchange> exchange) ABSL_LOCKS_EXCLUDED(mutex);

  static MHD_Result OnRequest(void* self, MHD_Connection* connection, const char* url,
                              const char* method, const char* version, const char* body,
                              size_t* body_bytes, void** context);
  static void OnConnection(void* self, MHD_Connection* connection, void** context,
                           MHD_ConnectionNotificationCode what);
  static void OnCompleted(void* self, MHD_Connection* connection, void** context,
                          MHD_RequestTerminationCode how);
  static ssize_t ReadStream(void* exchange, uint64_t position, char* buffer, size_t max);

  const HttpServerOptions options;
  const HttpServer::Callbacks callbacks;
  UniqueFd wake;      // eventfd: somebody was poked, or the end
  UniqueFd hang_ups;  // epoll of the clients that wait
  MHD_Daemon* daemon = nullptr;

  // The server's thread.
  std::map<MHD_Connection*, Connection> connections;
  std::map<int, HttpExchange*> waiting;  // suspended, by descriptor
  const std::shared_ptr<std::atomic<size_t>> bodies_bytes =
      std::make_shared<std::atomic<size_t>>(0);
  int64_t num_exchanges = 0;
  uint64_t closed = 0;

  absl::Mutex mutex;
  std::vector<std::shared_ptr<HttpExchange>> poked ABSL_GUARDED_BY(mutex);
  std::optional<absl::Time> stop_at ABSL_GUARDED_BY(mutex);
  std::thread thread;
};

// --- The exchange

void HttpExchange::BeginStream(std::string content_type) {
  stream_type_ = std::move(content_type);
  is_streaming_ = true;
}

void HttpExchange::Poke() {
  if (is_poked_.exchange(true)) return;
  if (auto self = self_.lock(); self != nullptr) server_->Poke(std::move(self));
}

// --- Life of the server

HttpServerState::~HttpServerState() {
  if (thread.joinable()) {
    {
      absl::MutexLock lock(&mutex);
      stop_at = absl::Now() + kStopTime;
    }
    const uint64_t one = 1;
    (void)!write(wake.get(), &one, sizeof one);
    thread.join();
  }
  if (daemon != nullptr) MHD_stop_daemon(daemon);
}

absl::Status HttpServerState::Listen() {
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  v4.sin_port = htons(options.address.port);
  sockaddr_in6 v6{};
  v6.sin6_family = AF_INET6;
  v6.sin6_port = htons(options.address.port);
  const bool is_ipv6 = options.address.is_ipv6;
  inet_pton(is_ipv6 ? AF_INET6 : AF_INET, options.address.host.c_str(),
            is_ipv6 ? static_cast<void*>(&v6.sin6_addr) : &v4.sin_addr);
  const sockaddr* where =
      is_ipv6 ? reinterpret_cast<const sockaddr*>(&v6) : reinterpret_cast<const sockaddr*>(&v4);
  wake.Reset(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  hang_ups.Reset(epoll_create1(EPOLL_CLOEXEC));
  if (!wake.is_open() || !hang_ups.is_open()) return absl::ErrnoToStatus(errno, "http");
  errno = 0;
  daemon = MHD_start_daemon(
      MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | (is_ipv6 ? MHD_USE_IPv6 : 0), options.address.port,
      nullptr, nullptr, &HttpServerState::OnRequest, this, MHD_OPTION_SOCK_ADDR, where,
      MHD_OPTION_CONNECTION_LIMIT, options.connections_max + kSpareConnections,
      MHD_OPTION_CONNECTION_MEMORY_LIMIT, kConnectionBytes, MHD_OPTION_CONNECTION_TIMEOUT,
      static_cast<unsigned>(absl::ToInt64Seconds(options.idle_time)), MHD_OPTION_NOTIFY_CONNECTION,
      &HttpServerState::OnConnection, this, MHD_OPTION_NOTIFY_COMPLETED,
      &HttpServerState::OnCompleted, this, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
  if (daemon != nullptr) return absl::OkStatus();
  const int error = errno;
  const std::string what = absl::StrCat(options.address.host, ":", options.address.port);
  if (error == EADDRINUSE) return absl::AlreadyExistsError(absl::StrCat(what, " is in use"));
  return absl::ErrnoToStatus(error == 0 ? EAGAIN : error, what);
}

void HttpServerState::Run() {
  const int ready = MHD_get_daemon_info(daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
  while (!HasEnded()) {
    pollfd polled[] = {{.fd = ready, .events = POLLIN, .revents = 0},
                       {.fd = hang_ups.get(), .events = POLLIN, .revents = 0},
                       {.fd = wake.get(), .events = POLLIN, .revents = 0}};
    if (poll(polled, 3, PollTimeoutMs()) < 0 && errno != EINTR) return;
    uint64_t count = 0;
    (void)!read(wake.get(), &count, sizeof count);
    LookForHangUps();
    RunPoked();
    RunLibrary();
    CloseLate();
  }
  while (!waiting.empty()) HangUp(*waiting.begin()->second);
  RunLibrary();
}

// Asked to stop, and nothing is under way or the time is up.
bool HttpServerState::HasEnded() {
  absl::MutexLock lock(&mutex);
  return stop_at.has_value() && (num_exchanges == 0 || absl::Now() >= *stop_at);
}

// A full server stops to poll its listener, and takes it up again in the run after the one that
// closed a connection.
void HttpServerState::RunLibrary() {
  for (uint64_t before = closed - 1; before != closed;) {
    before = closed;
    MHD_run(daemon);
  }
}

int HttpServerState::PollTimeoutMs() const {
  constexpr int64_t kLongest = 1000;  // stop_at is looked at
  int64_t ms = kLongest;
  MHD_UNSIGNED_LONG_LONG wanted = 0;
  if (MHD_get_timeout(daemon, &wanted) == MHD_YES) {
    ms = static_cast<int64_t>(std::min<MHD_UNSIGNED_LONG_LONG>(wanted, kLongest));
  }
  const absl::Time now = absl::Now();
  for (const auto& [connection, open] : connections) {
    if (open.close_at == absl::InfiniteFuture()) continue;
    ms = std::clamp<int64_t>(absl::ToInt64Milliseconds(open.close_at - now) + 1, 0, ms);
  }
  return static_cast<int>(ms);
}

// The library closes a descriptor when it sees the end of its stream.
void HttpServerState::CloseLate() {
  const absl::Time now = absl::Now();
  for (auto& [connection, open] : connections) {
    if (open.close_at > now) continue;
    shutdown(open.fd, SHUT_RDWR);
    open.is_closing = true;
    open.close_at = absl::InfiniteFuture();
  }
}

// More connections than there may be: the one that has been idle for longest goes.
void HttpServerState::MakeRoom() {
  int64_t open = 0;
  auto oldest = connections.end();
  for (auto it = connections.begin(); it != connections.end(); ++it) {
    if (it->second.is_closing) continue;
    ++open;
    if (it->second.has_request) continue;
    if (oldest == connections.end() || it->second.close_at < oldest->second.close_at) oldest = it;
  }
  if (open <= options.connections_max || oldest == connections.end()) return;
  shutdown(oldest->second.fd, SHUT_RDWR);
  oldest->second.is_closing = true;
  oldest->second.close_at = absl::InfiniteFuture();
  callbacks.on_connections(static_cast<int64_t>(connections.size()), true);
}

void HttpServerState::Poke(std::shared_ptr<HttpExchange> exchange) {
  {
    absl::MutexLock lock(&mutex);
    poked.push_back(std::move(exchange));
  }
  const uint64_t one = 1;
  (void)!write(wake.get(), &one, sizeof one);
}

void HttpServerState::RunPoked() {
  std::vector<std::shared_ptr<HttpExchange>> now;
  {
    absl::MutexLock lock(&mutex);
    now.swap(poked);
  }
  for (const auto& exchange : now) {
    exchange->is_poked_ = false;  // before on_poke looks: what comes later pokes again
    if (exchange->connection_ == nullptr || exchange->is_gone_) continue;
    if (exchange->events_.on_poke) exchange->events_.on_poke();
    const bool has_news = exchange->answer_.has_value() || exchange->is_ended_ ||
                          !exchange->out_.empty() ||
                          (exchange->is_streaming_ && !exchange->is_queued_);
    if (has_news && exchange->is_suspended_) Resume(*exchange);
  }
}

// --- Clients that wait

void HttpServerState::Suspend(HttpExchange& exchange) {
  epoll_event event{.events = EPOLLRDHUP, .data = {.fd = exchange.fd_}};
  epoll_ctl(hang_ups.get(), EPOLL_CTL_ADD, exchange.fd_, &event);
  waiting[exchange.fd_] = &exchange;
  exchange.is_suspended_ = true;
  MHD_suspend_connection(exchange.connection_);
}

void HttpServerState::Resume(HttpExchange& exchange) {
  epoll_ctl(hang_ups.get(), EPOLL_CTL_DEL, exchange.fd_, nullptr);
  waiting.erase(exchange.fd_);
  exchange.is_suspended_ = false;
  MHD_resume_connection(exchange.connection_);
}

void HttpServerState::HangUp(HttpExchange& exchange) {
  exchange.is_gone_ = true;
  Resume(exchange);
  if (exchange.events_.on_gone) exchange.events_.on_gone();
}

void HttpServerState::LookForHangUps() {
  epoll_event events[64];
  const int count = epoll_wait(hang_ups.get(), events, std::size(events), 0);
  for (int i = 0; i < count; ++i) {
    const auto it = waiting.find(events[i].data.fd);
    if (it != waiting.end()) HangUp(*it->second);
  }
}

// --- What the library calls

void HttpServerState::OnConnection(void* self, MHD_Connection* connection, void**,
                                   MHD_ConnectionNotificationCode what) {
  HttpServerState& state = *static_cast<HttpServerState*>(self);
  if (what == MHD_CONNECTION_NOTIFY_CLOSED) {
    state.connections.erase(connection);
    ++state.closed;
  } else {
    const int fd =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    const int on = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    state.connections[connection] = {.fd = fd,
                                     .close_at = absl::Now() + state.options.request_time};
    state.MakeRoom();
  }
  state.callbacks.on_connections(static_cast<int64_t>(state.connections.size()), false);
}

void HttpServerState::OnCompleted(void* self, MHD_Connection* connection, void** context,
                                  MHD_RequestTerminationCode how) {
  HttpServerState& state = *static_cast<HttpServerState*>(self);
  const auto* holder = static_cast<std::shared_ptr<HttpExchange>*>(*context);
  if (holder == nullptr) return;
  HttpExchange& exchange = **holder;
  const bool was_told = std::exchange(exchange.is_gone_, true);
  exchange.connection_ = nullptr;
  exchange.body_.reset();
  --state.num_exchanges;
  if (const auto it = state.connections.find(connection); it != state.connections.end()) {
    it->second.has_request = false;
    it->second.close_at = absl::Now() + state.options.idle_time;
  }
  const bool is_whole = how == MHD_REQUEST_TERMINATED_COMPLETED_OK;
  if (!is_whole && !was_told && exchange.events_.on_gone) exchange.events_.on_gone();
  exchange.events_ = {};
  delete holder;
  *context = nullptr;
}

MHD_Result HttpServerState::OnRequest(void* self, MHD_Connection* connection, const char* url,
                                      const char* method, const char*, const char* body,
                                      size_t* body_bytes, void** context) {
  HttpServerState& state = *static_cast<HttpServerState*>(self);
  if (*context == nullptr) return state.OnHead(connection, method, url, context);
  const std::shared_ptr<HttpExchange> exchange =
      *static_cast<std::shared_ptr<HttpExchange>*>(*context);
  if (*body_bytes > 0) {
    const std::string_view piece(body, std::exchange(*body_bytes, 0));
    return state.OnBody(*exchange, piece);
  }
  return state.OnWhole(exchange);
}

MHD_Result HttpServerState::OnHead(MHD_Connection* connection, std::string_view method,
                                   std::string_view path, void** context) {
  auto exchange = std::make_shared<HttpExchange>();
  *context = new std::shared_ptr<HttpExchange>(exchange);
  ++num_exchanges;
  exchange->server_ = this;
  exchange->self_ = exchange;
  exchange->connection_ = connection;
  exchange->body_ = std::make_shared<HttpBody>(bodies_bytes);
  if (const auto it = connections.find(connection); it != connections.end()) {
    exchange->fd_ = it->second.fd;
    it->second.has_request = true;
    it->second.close_at = absl::Now() + options.request_time;
  }
  HttpRequest& request = exchange->request_;
  request.method = method;
  request.path = path;
  request.host = Field(connection, "Host");
  request.origin = Field(connection, "Origin");
  request.authorization = Field(connection, "Authorization");
  request.content_type = Field(connection, "Content-Type");
  exchange->answer_ = callbacks.check_head(request);
  exchange->is_body_refused_ = exchange->answer_.has_value();
  return MHD_YES;
}

// A refused body is read and forgotten.
MHD_Result HttpServerState::OnBody(HttpExchange& exchange, std::string_view piece) {
  if (!exchange.is_body_refused_) {
    HttpBody& body = *exchange.body_;
    if (body.text().size() + piece.size() > options.body_bytes_max) {
      exchange.answer_ = callbacks.make_error(
          413, absl::StrCat("the body is larger than ", options.body_bytes_max, " bytes"));
    } else if (*bodies_bytes + piece.size() > options.bodies_bytes_max) {
      exchange.answer_ =
          callbacks.make_error(429, "too many large requests are waiting; try again later");
    }
    exchange.is_body_refused_ = exchange.answer_.has_value();
    if (!exchange.is_body_refused_) {
      body.Append(piece);
      return MHD_YES;
    }
    exchange.body_.reset();
  }
  exchange.discarded_bytes_ += piece.size();
  return exchange.discarded_bytes_ <= kDiscardedBytesMax ? MHD_YES : MHD_NO;
}

// Called when the request is whole, and again whenever the connection was resumed.
MHD_Result HttpServerState::OnWhole(const std::shared_ptr<HttpExchange>& exchange) {
  if (exchange->is_gone_) return MHD_NO;
  if (!std::exchange(exchange->is_handled_, true)) {
    if (const auto it = connections.find(exchange->connection_); it != connections.end()) {
      it->second.close_at = absl::InfiniteFuture();
    }
    if (!exchange->answer_.has_value()) callbacks.on_request(exchange);
  }
  if (exchange->answer_.has_value()) return SendAnswer(*exchange);
  if (exchange->is_streaming_) return SendStream(*exchange);
  Suspend(*exchange);
  return MHD_YES;
}

MHD_Result HttpServerState::SendAnswer(HttpExchange& exchange) {
  const HttpAnswer& answer = *exchange.answer_;
  MHD_Response* response = MHD_create_response_from_buffer(
      answer.body.size(), const_cast<char*>(answer.body.data()), MHD_RESPMEM_MUST_COPY);
  if (response == nullptr) return MHD_NO;
  MHD_add_response_header(response, "Content-Type", answer.content_type.c_str());
  MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
  MHD_add_response_header(response, "Cache-Control", "no-store");
  for (const auto& [name, value] : answer.fields) {
    MHD_add_response_header(response, name.c_str(), value.c_str());
  }
  exchange.is_queued_ = true;
  const MHD_Result queued = MHD_queue_response(exchange.connection_, answer.code, response);
  MHD_destroy_response(response);
  return queued;
}

MHD_Result HttpServerState::SendStream(HttpExchange& exchange) {
  MHD_Response* response = MHD_create_response_from_callback(
      MHD_SIZE_UNKNOWN, kStreamBlockBytes, &HttpServerState::ReadStream, &exchange, nullptr);
  if (response == nullptr) return MHD_NO;
  MHD_add_response_header(response, "Content-Type", exchange.stream_type_.c_str());
  MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
  MHD_add_response_header(response, "Cache-Control", "no-store");
  exchange.is_queued_ = true;
  const MHD_Result queued = MHD_queue_response(exchange.connection_, 200, response);
  MHD_destroy_response(response);
  return queued;
}

ssize_t HttpServerState::ReadStream(void* context, uint64_t, char* buffer, size_t max) {
  HttpExchange& exchange = *static_cast<HttpExchange*>(context);
  if (exchange.is_gone_) return MHD_CONTENT_READER_END_WITH_ERROR;
  if (exchange.out_.empty() && !exchange.is_ended_ && exchange.events_.on_poke) {
    exchange.events_.on_poke();
  }
  const size_t count = std::min(max, exchange.out_.size());
  if (count > 0) {
    std::copy_n(exchange.out_.data(), count, buffer);
    exchange.out_.erase(0, count);
    return static_cast<ssize_t>(count);
  }
  if (exchange.is_broken_) return MHD_CONTENT_READER_END_WITH_ERROR;
  if (exchange.is_ended_) return MHD_CONTENT_READER_END_OF_STREAM;
  exchange.server_->Suspend(exchange);
  return 0;
}

// --- The server

HttpServer::HttpServer(std::unique_ptr<HttpServerState> state) : state_(std::move(state)) {}
HttpServer::~HttpServer() = default;

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpServerOptions& options,
                                                              Callbacks callbacks) {
  auto state = std::make_unique<HttpServerState>(options, std::move(callbacks));
  RETURN_IF_ERROR(state->Listen());
  HttpServerState* raw = state.get();
  raw->thread = std::thread([raw] { raw->Run(); });
  pthread_setname_np(raw->thread.native_handle(), "kv-http");
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(state)));
}

uint16_t HttpServer::port() const {
  return MHD_get_daemon_info(state_->daemon, MHD_DAEMON_INFO_BIND_PORT)->port;
}

}  // namespace kvstore::engine
