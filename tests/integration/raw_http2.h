// HTTP/2 by hand, for requests that no client library would send.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace kvstore::testing {

enum class Http2Frame : uint8_t { kData = 0, kHeaders = 1, kSettings = 4 };
inline constexpr uint8_t kEndStream = 0x1, kEndHeaders = 0x4;

inline std::string Frame(Http2Frame type, uint8_t flags, uint32_t stream,
                         std::string_view payload) {
  std::string out;
  for (const int shift : {16, 8, 0})
    out.push_back(static_cast<char>(payload.size() >> shift & 0xff));
  out.push_back(static_cast<char>(type));
  out.push_back(static_cast<char>(flags));
  for (const int shift : {24, 16, 8, 0}) out.push_back(static_cast<char>(stream >> shift & 0xff));
  return out.append(payload);
}

// What opens a connection.
inline std::string Http2Opening() {
  return "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + Frame(Http2Frame::kSettings, 0, 0, "");
}

// A header that is neither indexed nor compressed. Requires: both shorter than 127 bytes.
inline std::string Header(std::string_view name, std::string_view value) {
  std::string out(1, '\0');
  out.push_back(static_cast<char>(name.size()));
  out.append(name);
  out.push_back(static_cast<char>(value.size()));
  return out.append(value);
}

// The headers of a gRPC call, e.g. of "/kvstore.v1.KvStore/Match".
inline std::string CallHeaders(uint32_t stream, std::string_view path) {
  return Frame(Http2Frame::kHeaders, kEndHeaders, stream,
               Header(":method", "POST") + Header(":scheme", "http") + Header(":path", path) +
                   Header(":authority", "x") + Header("content-type", "application/grpc") +
                   Header("te", "trailers"));
}

// A gRPC message's five bytes of prefix, which may lie about what follows.
inline std::string MessagePrefix(uint32_t bytes) {
  std::string out(1, '\0');
  for (const int shift : {24, 16, 8, 0}) out.push_back(static_cast<char>(bytes >> shift & 0xff));
  return out;
}

}  // namespace kvstore::testing
