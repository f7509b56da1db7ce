// A small HTTP/1.1 server for monitoring: GET and HEAD of a few fixed paths, on a loopback address.
//
// What a client can cost is bounded before it has said a word: at most kConnectionsMax connections,
// 8 KiB each, closed after kConnectionTime whatever they do; one answer a connection. Beyond that
// clients wait in the kernel's backlog. Requests with another method, another path or a body are
// refused; nothing is changed by any request.
//
// Threads: one of its own, "kv-http", on which the pages are made one at a time; it sleeps when
// nobody asks. The object itself is confined to its owner's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/base/clock.h"

namespace kvstore::metrics {

struct HttpAddress {
  bool is_ipv6 = false;  // ::1, else 127.0.0.1
  uint16_t port = 0;     // 0: the kernel chooses
};
// "127.0.0.1:9100", "[::1]:9100", "localhost:9100". Errors: InvalidArgument: another host, as there
// is no authentication; no port.
absl::StatusOr<HttpAddress> ParseHttpAddress(std::string_view text);

struct HttpAnswer {
  int code = 200;
  std::string content_type;
  std::string body;
};
// By path, e.g. "/metrics". Called on the server's thread.
using HttpPages = std::map<std::string, std::function<HttpAnswer()>, std::less<>>;

class HttpServer {
 public:
  static constexpr unsigned kConnectionsMax = 16;
  static constexpr absl::Duration kConnectionTime = absl::Seconds(5);

  // Listens and serves until destroyed. `clock` outlives it. `connection_time`: shorter in tests.
  // Errors: AlreadyExists, the port is in use; Unavailable, the server did not start.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(
      const HttpAddress& address, HttpPages pages, const Clock& clock,
      absl::Duration connection_time = kConnectionTime);
  ~HttpServer();
  uint16_t port() const;

 private:
  struct State;
  explicit HttpServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace kvstore::metrics
