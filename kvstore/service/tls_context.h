// What our side of TLS is: certificate, key, whose client certificates are accepted, and the rules.
//
// TLS 1.3 and nothing older; a client certificate is required and verified against tls_client_ca
// alone; ALPN must agree on "h2". No resumption, no tickets, no early data: each connection shows
// its certificate. There is no revocation list: take a name out of the tenants file instead, or
// issue short-lived certificates.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

struct ssl_ctx_st;
struct ssl_st;

namespace kvstore::service {

struct TlsFiles {
  std::string cert;       // PEM: the server's certificate, then its chain
  std::string key;        // PEM, not encrypted; ours, mode 0400 or 0600
  std::string client_ca;  // PEM: one or more authorities
};

struct SslFree {
  void operator()(ssl_st* ssl) const;
};
using SslPtr = std::unique_ptr<ssl_st, SslFree>;

// Immutable. Thread-safe.
class TlsContext {
 public:
  // Errors: FailedPrecondition, a file that others may touch (ReadOwnedFile); InvalidArgument,
  // malformed, not a pair, not valid today; errno's. Messages name the file.
  static absl::StatusOr<std::shared_ptr<const TlsContext>> Load(const TlsFiles& files);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;

  // The server's side of a connection on `fd`, which outlives it. Null: no memory.
  SslPtr Accept(int fd) const;
  // Whether the peer's certificate of an established connection, perhaps of an older context, is
  // accepted by this one now: authority and dates.
  bool Accepts(ssl_st* connection) const;

 private:
  explicit TlsContext(ssl_ctx_st* context) : context_(context) {}
  ssl_ctx_st* const context_;
};

// The URI and DNS names of the peer's certificate in canonical form (tenants.h); other kinds, and
// the subject, are not looked at. nullopt: a malformed or too long list, which is not worth a
// guess.
std::optional<std::vector<std::string>> PeerNames(ssl_st* connection);
bool HasHttp2(ssl_st* connection);  // ALPN agreed on "h2"

// Why the last OpenSSL call of this thread on `connection` failed; empties its error queue.
std::string TlsErrorText(ssl_st* connection);

}  // namespace kvstore::service
