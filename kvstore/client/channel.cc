#include "kvstore/client/channel.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <sys/un.h>

#include <cerrno>
#include <charconv>

#include "absl/strings/str_cat.h"
#include "kvstore/base/memory_socket.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"
#include "kvstore/base/unique_fd.h"

namespace kvstore::client {
namespace {

absl::Status BadTarget(std::string_view text, const char* why) {
  return absl::InvalidArgumentError(
      absl::StrCat("target '", AbslView(text), "': ", why,
                   "; valid: unix:PATH or tcp:HOST:PORT, e.g. unix:/run/kvstore/kvstored.sock"));
}

bool IsPort(std::string_view text) {
  unsigned port = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  return error == std::errc() && end == text.data() + text.size() && port >= 1 && port <= 65535;
}

constexpr int kTcpConnectMs = 3000;
// gRPC looks at the files again this often.
constexpr unsigned kTlsRefreshSeconds = 10;

// gRPC reports a missing file in its own log only, and retries for ever.
absl::Status CheckReadable(const TlsFiles& tls) {
  for (const std::string& path : {tls.cert, tls.key, tls.ca}) {
    const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!fd.is_open()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  }
  return absl::OkStatus();
}

std::shared_ptr<grpc::ChannelCredentials> TlsCredentialsOf(const TlsFiles& tls) {
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(
      std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
          tls.key, tls.cert, tls.ca, kTlsRefreshSeconds));
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  return grpc::experimental::TlsCredentials(options);
}

}  // namespace

absl::StatusOr<std::string> AdminTarget(std::string_view target) {
  ASSIGN_OR_RETURN(const Target parsed, ParseTarget(target));
  if (parsed.is_unix) return absl::StrCat(AbslView(target), kAdminSocketSuffix);
  return absl::PermissionDeniedError(absl::StrCat(
      AbslView(target), " has no Admin service: it is on the daemon's own Unix socket only"));
}

absl::StatusOr<Target> ParseTarget(std::string_view text) {
  if (text.starts_with("unix:")) {
    std::string path(text.substr(5));
    if (path.empty()) return BadTarget(text, "the path is empty");
    if (path.find('\0') != std::string::npos) return BadTarget(text, "the path has a zero byte");
    // The admin socket is beside it, with more bytes than the memory socket.
    const size_t suffix_bytes =
        path.ends_with(kAdminSocketSuffix) ? 0 : sizeof kAdminSocketSuffix - 1;
    if (path.size() + suffix_bytes >= sizeof(sockaddr_un::sun_path))
      return BadTarget(text, "the path is longer than 101 bytes");
    return Target{.is_unix = true, .address = std::move(path)};
  }
  if (text.starts_with("tcp:")) {
    std::string address(text.substr(4));
    const size_t colon = address.rfind(':');
    if (colon == std::string::npos || colon == 0) return BadTarget(text, "no HOST:PORT");
    if (!IsPort(std::string_view(address).substr(colon + 1)))
      return BadTarget(text, "the port is not 1 to 65535");
    return Target{.is_unix = false, .address = std::move(address)};
  }
  return BadTarget(text, "unknown kind");
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(std::string_view target,
                                                           const std::optional<TlsFiles>& tls) {
  absl::StatusOr<Target> parsed = ParseTarget(target);
  if (!parsed.ok()) return parsed.status();
  if (tls.has_value() && parsed->is_unix) {
    return absl::InvalidArgumentError(
        "TLS with a unix: target, where the peer's uid is the identity; valid with tcp:HOST:PORT");
  }
  if (tls.has_value()) RETURN_IF_ERROR(CheckReadable(*tls));
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(kMessageBytesMax);
  args.SetMaxSendMessageSize(kMessageBytesMax);
  // A reply of thousands of blocks in one flight and few reads; measured with Acquire of 2,048 and
  // 8,192 blocks.
  args.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1 << 20);
  args.SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, 256 << 10);
  args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  args.SetInt(GRPC_ARG_TCP_READ_CHUNK_SIZE, 64 << 10);
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // In spite of its name: how long one attempt to connect may take, handshakes included.
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, parsed->is_unix ? 100 : kTcpConnectMs);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // No identity comes from the name: the peer is who answers on that socket.
  if (parsed->is_unix) args.SetString(GRPC_ARG_DEFAULT_AUTHORITY, "localhost");
  const std::string uri =
      parsed->is_unix ? absl::StrCat("unix:", parsed->address) : parsed->address;
  return grpc::CreateCustomChannel(
      uri, tls.has_value() ? TlsCredentialsOf(*tls) : grpc::InsecureChannelCredentials(), args);
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

}  // namespace kvstore::client
