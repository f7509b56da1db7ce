// Where a server listens, as people write it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace kvstore::engine {

struct ListenAddress {
  std::string host;   // "127.0.0.1", "::1": numeric
  uint16_t port = 0;  // 0: the kernel chooses
  bool is_ipv6 = false;
  bool is_loopback = true;
};
// "127.0.0.1:8000", "[::1]:8000", "localhost:8000", "0.0.0.0:8000". Errors: InvalidArgument.
absl::StatusOr<ListenAddress> ParseListenAddress(std::string_view text);

}  // namespace kvstore::engine
