#include "kvstore/service/tls_context.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <cstring>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/service/owned_file.h"
#include "kvstore/service/tenants.h"

namespace kvstore::service {
namespace {

constexpr int kPeerChainBytesMax = 32 << 10;
constexpr int kChainDepthMax = 4;
constexpr int kPeerNamesMax = 64;
constexpr unsigned char kAlpnHttp2[] = {2, 'h', '2'};

template <auto Free>
struct Freer {
  template <class T>
  void operator()(T* object) const {
    Free(object);
  }
};
using BioPtr = std::unique_ptr<BIO, Freer<BIO_free_all>>;
using X509Ptr = std::unique_ptr<X509, Freer<X509_free>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, Freer<EVP_PKEY_free>>;
using StoreContextPtr = std::unique_ptr<X509_STORE_CTX, Freer<X509_STORE_CTX_free>>;
using NamesPtr = std::unique_ptr<GENERAL_NAMES, Freer<GENERAL_NAMES_free>>;

BioPtr Memory(const std::string& text) {
  return BioPtr(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

std::string OpenSslReason() {
  const unsigned long code = ERR_get_error();
  const char* reason = code == 0 ? nullptr : ERR_reason_error_string(code);
  ERR_clear_error();
  return reason == nullptr ? "unknown reason" : reason;
}

absl::Status BadFile(const std::string& path, std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": ", std::string(what), " (", OpenSslReason(), ")"));
}

// All certificates of a PEM file; at least one.
absl::StatusOr<std::vector<X509Ptr>> ReadCertificates(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadOwnedFile(path, FileCare::kProtected));
  const BioPtr bio = Memory(text);
  std::vector<X509Ptr> found;
  ERR_clear_error();
  while (X509* one = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) {
    found.emplace_back(one);
  }
  // The end of the file shows as a missing start line; anything else is damage.
  const bool is_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  if (!is_end || found.empty()) return BadFile(path, "not PEM certificates");
  ERR_clear_error();
  return found;
}

absl::StatusOr<KeyPtr> ReadKey(const std::string& path) {
  ASSIGN_OR_RETURN(std::string text, ReadOwnedFile(path, FileCare::kSecret));
  ERR_clear_error();
  const BioPtr bio = Memory(text);
  // No pass phrase is ever asked for: an encrypted key is an error.
  const auto no_phrase = [](char*, int, int, void*) { return -1; };
  KeyPtr key(PEM_read_bio_PrivateKey(bio.get(), nullptr, no_phrase, nullptr));
  OPENSSL_cleanse(text.data(), text.size());
  if (key == nullptr) return BadFile(path, "not an unencrypted PEM private key");
  return key;
}

absl::Status CheckDates(const std::string& path, const X509* certificate) {
  if (X509_cmp_current_time(X509_get0_notAfter(certificate)) < 0)
    return absl::InvalidArgumentError(absl::StrCat(path, ": the certificate has expired"));
  if (X509_cmp_current_time(X509_get0_notBefore(certificate)) > 0)
    return absl::InvalidArgumentError(absl::StrCat(path, ": the certificate is not valid yet"));
  return absl::OkStatus();
}

int SelectHttp2(SSL*, const unsigned char** out, unsigned char* out_bytes, const unsigned char* in,
                unsigned in_bytes, void*) {
  unsigned char* selected = nullptr;
  if (SSL_select_next_proto(&selected, out_bytes, kAlpnHttp2, sizeof kAlpnHttp2, in, in_bytes) !=
      OPENSSL_NPN_NEGOTIATED)
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  *out = selected;
  return SSL_TLSEXT_ERR_OK;
}

void SetRules(SSL_CTX* context) {
  SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  SSL_CTX_set_verify_depth(context, kChainDepthMax);
  SSL_CTX_set_max_cert_list(context, kPeerChainBytesMax);
  SSL_CTX_set_alpn_select_cb(context, SelectHttp2, nullptr);
  // A resumed session would not show its certificate again.
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context, 0);
  SSL_CTX_set_options(context, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                SSL_MODE_RELEASE_BUFFERS);
}

absl::Status SetIdentity(SSL_CTX* context, const TlsFiles& files) {
  ASSIGN_OR_RETURN(const std::vector<X509Ptr> chain, ReadCertificates(files.cert));
  RETURN_IF_ERROR(CheckDates(files.cert, chain.front().get()));
  if (SSL_CTX_use_certificate(context, chain.front().get()) != 1)
    return BadFile(files.cert, "cannot be used as the server's certificate");
  for (size_t i = 1; i < chain.size(); ++i) {
    if (SSL_CTX_add1_chain_cert(context, chain[i].get()) != 1)
      return BadFile(files.cert, "bad certificate chain");
  }
  ASSIGN_OR_RETURN(const KeyPtr key, ReadKey(files.key));
  if (SSL_CTX_use_PrivateKey(context, key.get()) != 1 || SSL_CTX_check_private_key(context) != 1)
    return BadFile(files.key, absl::StrCat("is not the key of ", files.cert));
  return absl::OkStatus();
}

absl::Status SetAuthorities(SSL_CTX* context, const std::string& path) {
  ASSIGN_OR_RETURN(const std::vector<X509Ptr> authorities, ReadCertificates(path));
  for (const X509Ptr& authority : authorities) {
    if (X509_STORE_add_cert(SSL_CTX_get_cert_store(context), authority.get()) != 1 ||
        SSL_CTX_add_client_CA(context, authority.get()) != 1)
      return BadFile(path, "cannot be used as a client authority");
  }
  return absl::OkStatus();
}

}  // namespace

void SslFree::operator()(ssl_st* ssl) const { SSL_free(ssl); }

absl::StatusOr<std::shared_ptr<const TlsContext>> TlsContext::Load(const TlsFiles& files) {
  SSL_CTX* context = SSL_CTX_new(TLS_server_method());
  if (context == nullptr) return absl::ResourceExhaustedError("no memory for a TLS context");
  std::shared_ptr<const TlsContext> made(new TlsContext(context));
  SetRules(context);
  RETURN_IF_ERROR(SetIdentity(context, files));
  RETURN_IF_ERROR(SetAuthorities(context, files.client_ca));
  return made;
}

TlsContext::~TlsContext() { SSL_CTX_free(context_); }

SslPtr TlsContext::Accept(int fd) const {
  SslPtr ssl(SSL_new(context_));
  if (ssl == nullptr || SSL_set_fd(ssl.get(), fd) != 1) return nullptr;
  SSL_set_accept_state(ssl.get());
  return ssl;
}

bool TlsContext::Accepts(ssl_st* connection) const {
  const X509Ptr peer(SSL_get1_peer_certificate(connection));
  const StoreContextPtr check(X509_STORE_CTX_new());
  if (peer == nullptr || check == nullptr) return false;
  if (X509_STORE_CTX_init(check.get(), SSL_CTX_get_cert_store(context_), peer.get(),
                          SSL_get_peer_cert_chain(connection)) != 1 ||
      X509_STORE_CTX_set_default(check.get(), "ssl_client") != 1)
    return false;
  X509_STORE_CTX_set_depth(check.get(), kChainDepthMax);
  const bool is_accepted = X509_verify_cert(check.get()) == 1;
  ERR_clear_error();
  return is_accepted;
}

std::optional<std::vector<std::string>> PeerNames(ssl_st* connection) {
  const X509Ptr peer(SSL_get1_peer_certificate(connection));
  if (peer == nullptr) return std::nullopt;
  int critical = 0;
  const NamesPtr all(static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(peer.get(), NID_subject_alt_name, &critical, nullptr)));
  ERR_clear_error();
  // -1: it has none. -2: several extensions of the kind; else null is a malformed one.
  if (all == nullptr)
    return critical == -1 ? std::optional(std::vector<std::string>()) : std::nullopt;
  if (sk_GENERAL_NAME_num(all.get()) > kPeerNamesMax) return std::nullopt;
  std::vector<std::string> names;
  for (int i = 0; i < sk_GENERAL_NAME_num(all.get()); ++i) {
    const GENERAL_NAME* one = sk_GENERAL_NAME_value(all.get(), i);
    if (one->type != GEN_URI && one->type != GEN_DNS) continue;
    const ASN1_IA5STRING* text = one->d.ia5;
    const std::string_view name(reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)),
                                static_cast<size_t>(ASN1_STRING_length(text)));
    std::optional<std::string> canonical = CanonicalCertificateName(name);
    // A name of one kind must not pass for one of the other.
    const bool is_uri = name.find("://") != std::string_view::npos;
    if (canonical.has_value() && is_uri == (one->type == GEN_URI))
      names.push_back(*std::move(canonical));
  }
  return names;
}

bool HasHttp2(ssl_st* connection) {
  const unsigned char* protocol = nullptr;
  unsigned bytes = 0;
  SSL_get0_alpn_selected(connection, &protocol, &bytes);
  return bytes == 2 && std::memcmp(protocol, "h2", 2) == 0;
}

std::string TlsErrorText(ssl_st* connection) {
  const long verified = SSL_get_verify_result(connection);
  if (verified != X509_V_OK) {
    ERR_clear_error();
    return X509_verify_cert_error_string(verified);
  }
  return ERR_peek_error() == 0 ? std::string("hung up") : OpenSslReason();
}

}  // namespace kvstore::service
