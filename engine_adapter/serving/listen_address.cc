#include "engine_adapter/serving/listen_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <charconv>

namespace kvstore::engine {

absl::StatusOr<ListenAddress> ParseListenAddress(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return absl::InvalidArgumentError("no port");
  ListenAddress address{.host = std::string(text.substr(0, colon))};
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

}  // namespace kvstore::engine
