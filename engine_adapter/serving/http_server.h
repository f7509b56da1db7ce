// An HTTP/1.1 server for answers that take their time: requests with bodies, answers that come as a
// stream, clients that hang up in the middle.
//
// What a client can cost is bounded: connections (an idle one gives way to a new one), 32 KiB each,
// bodies one by one and all together, the time a request may take to arrive. TLS is a proxy's work.
//
// Threads: one of its own, "kv-http", which calls back and never computes. Exchanges are confined to
// it, HttpExchange::Poke() excepted. The object itself is confined to its owner's thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

struct MHD_Connection;

namespace kvstore::engine {

struct HttpAddress {
  std::string host;   // "127.0.0.1", "::1": numeric
  uint16_t port = 0;  // 0: the kernel chooses
  bool is_ipv6 = false;
  bool is_loopback = true;
};
// "127.0.0.1:8000", "[::1]:8000", "localhost:8000", "0.0.0.0:8000". Errors: InvalidArgument.
absl::StatusOr<HttpAddress> ParseListenAddress(std::string_view text);

// The body of a request. It counts against the server's bodies_bytes_max for as long as it exists.
class HttpBody {
 public:
  explicit HttpBody(std::shared_ptr<std::atomic<size_t>> total) : total_(std::move(total)) {}
  ~HttpBody() { *total_ -= text_.size(); }
  HttpBody(const HttpBody&) = delete;
  HttpBody& operator=(const HttpBody&) = delete;

  const std::string& text() const { return text_; }
  void Append(std::string_view piece) {
    text_ += piece;
    *total_ += piece.size();
  }

 private:
  std::string text_;
  const std::shared_ptr<std::atomic<size_t>> total_;  // of all bodies, also of a server that ended
};

struct HttpRequest {
  std::string method;
  std::string path;
  // Header fields; nullopt where the request has none.
  std::optional<std::string> host;
  std::optional<std::string> origin;
  std::optional<std::string> authorization;
  std::optional<std::string> content_type;
};

struct HttpAnswer {
  unsigned code = 200;
  std::string content_type = "application/json";
  std::string body;
  // Further header fields, e.g. {"Retry-After", "1"}.
  std::vector<std::pair<std::string, std::string>> fields;
};

class HttpServer;

// One request and its answer: either Send(), or BeginStream() with writes until EndStream() or
// BreakStream(). May be kept by others until long after the client has gone; nothing happens then.
class HttpExchange {
 public:
  // What the server calls, on its thread.
  struct Events {
    // After Poke(), and when the client has read all of a stream that goes on.
    std::function<void()> on_poke;
    std::function<void()> on_gone;  // the client hung up before its answer was whole; once, last
  };

  const HttpRequest& request() const { return request_; }
  void set_events(Events events) { events_ = std::move(events); }
  // Once.
  std::shared_ptr<const HttpBody> TakeBody() { return std::move(body_); }

  void Send(HttpAnswer answer) { answer_ = std::move(answer); }
  void BeginStream(std::string content_type);
  void Write(std::string_view text) { out_ += text; }
  size_t unread_bytes() const { return out_.size(); }  // written, and not yet taken by the client
  void EndStream() { is_ended_ = true; }
  // The client sees that the answer is not whole.
  void BreakStream() { is_ended_ = is_broken_ = true; }

  // Has on_poke called soon. Any thread, any number of times. The server lives.
  void Poke();

 private:
  friend class HttpServer;
  friend struct HttpServerState;

  struct HttpServerState* server_ = nullptr;
  std::weak_ptr<HttpExchange> self_;
  MHD_Connection* connection_ = nullptr;  // null: the client is gone, or has its answer
  int fd_ = -1;
  HttpRequest request_;
  std::shared_ptr<HttpBody> body_;
  Events events_;
  std::optional<HttpAnswer> answer_;
  std::string stream_type_;
  std::string out_;
  size_t discarded_bytes_ = 0;
  std::atomic<bool> is_poked_{false};  // on_poke will be called after it was set
  bool is_body_refused_ = false;
  bool is_handled_ = false;    // on_request has been called
  bool is_queued_ = false;     // the library has the answer
  bool is_suspended_ = false;  // waits for an answer or its next piece
  bool is_streaming_ = false;
  bool is_ended_ = false;
  bool is_broken_ = false;
  bool is_gone_ = false;
};

struct HttpServerOptions {
  HttpAddress address;
  unsigned connections_max = 256;
  size_t body_bytes_max = 8 << 20;
  size_t bodies_bytes_max = 64 << 20;  // of all that are being received or wait to be read
  absl::Duration request_time = absl::Seconds(15);  // for a request to arrive
  absl::Duration idle_time = absl::Seconds(60);  // without a request, or without reading an answer
};

class HttpServer {
 public:
  struct Callbacks {
    // The head of a request: an answer refuses it. May not be empty.
    std::function<std::optional<HttpAnswer>(const HttpRequest&)> check_head;
    // A whole request.
    std::function<void(const std::shared_ptr<HttpExchange>&)> on_request;
    // The answer to a body that is too large, and to one that there is no room for now.
    std::function<HttpAnswer(unsigned code, std::string_view message)> make_error;
    // Connections now, and those that were closed to make room.
    std::function<void(int64_t connections, bool was_evicted)> on_connections;
  };

  // Listens and serves until destroyed. Errors: AlreadyExists, the address is in use; Unavailable.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpServerOptions& options,
                                                           Callbacks callbacks);
  // Waits two seconds for answers that are being sent.
  ~HttpServer();
  uint16_t port() const;

 private:
  explicit HttpServer(std::unique_ptr<struct HttpServerState> state);
  std::unique_ptr<struct HttpServerState> state_;
};

}  // namespace kvstore::engine
