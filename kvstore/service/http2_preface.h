// The bytes that open an HTTP/2 connection: who sends them is let through to gRPC.
#pragma once

#include <cstddef>
#include <string_view>

namespace kvstore::service {

inline constexpr std::string_view kHttp2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

enum class PrefaceSoFar { kPart, kWhole, kOther };

// Of the first bytes of a connection, at least one.
constexpr PrefaceSoFar CheckPreface(std::string_view head) {
  if (head.starts_with(kHttp2Preface)) return PrefaceSoFar::kWhole;
  return !head.empty() && kHttp2Preface.starts_with(head) ? PrefaceSoFar::kPart
                                                          : PrefaceSoFar::kOther;
}

}  // namespace kvstore::service
