// The tenants file: which uids and which certificate names act for which tenant, with its salt and
// its quota.
//
//   [tenant.team-a]
//   uids = [1001, 1002]                              # on the Unix socket
//   certificates = ["spiffe://example.org/team-a"]   # URI or DNS names, on TCP with TLS
//   salt = "5f0c9b..."                               # hex, goes into every fingerprint
//   quota = { dram = "8GiB", nvme = "200GiB", operations = 256 }
//
// Every key is optional. Nothing is adjusted: an unknown key, a uid or a certificate name with two
// owners, a bad name or size refuses the file, and the message says where and what is valid.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tiers/tier.h"

namespace kvstore::service {

inline constexpr size_t kTenantsMax = 256;
inline constexpr size_t kTenantUidsMax = 256;         // in all of the file
inline constexpr size_t kTenantCertificatesMax = 64;  // of one tenant
inline constexpr size_t kTenantBytesMax =
    63;  // fits the memory socket's field and a zero behind it

// 1 to 63 of letters, digits, '.', '_', '-'. Errors: InvalidArgument.
absl::Status CheckTenantName(std::string_view tenant);

// One tenant of the file. Plain value.
struct TenantRule {
  std::string name;
  std::vector<uid_t> uids;
  std::vector<std::string> certificate_names;  // canonical (CanonicalCertificateName)
  std::string salt;                            // lower-case hex; empty: none. Never logged
  std::array<std::optional<uint64_t>, tiers::kNumTierKinds> quota_bytes;  // nullopt: no quota
  std::optional<uint64_t> operations_max;                                 // in flight
};

// In the file's order of names. `file_name` is for messages.
// Errors: InvalidArgument with file, line and key.
absl::StatusOr<std::vector<TenantRule>> ParseTenants(std::string_view toml,
                                                     std::string_view file_name);
// As above. Errors: also those of ReadOwnedFile(), kProtected.
absl::StatusOr<std::vector<TenantRule>> LoadTenantsFile(const std::string& path);

// Names of certificates are compared byte by byte in this form: a URI ("spiffe://...") as it is, a
// DNS name in lower case. nullopt: neither, or with wildcards, which match nothing here.
std::optional<std::string> CanonicalCertificateName(std::string_view name);

}  // namespace kvstore::service
