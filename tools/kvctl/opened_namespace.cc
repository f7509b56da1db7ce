#include "tools/kvctl/opened_namespace.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::kvctl {
namespace {

constexpr size_t kFingerprintDigits = 2 * Fingerprint::kBytes;

bool IsFingerprint(const std::string& name) {
  return name.size() == kFingerprintDigits &&
         std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return std::isxdigit(c) != 0; });
}

absl::StatusOr<v1::OpenNamespaceResponse> Find(DaemonCalls& daemon, const std::string& name) {
  v1::FindNamespaceRequest request;
  request.mutable_namespace_()->set_name(name);
  absl::StatusOr<v1::OpenNamespaceResponse> found = daemon.FindNamespace(request);
  if (found.ok() || !absl::IsNotFound(found.status()) || !IsFingerprint(name)) return found;
  request.mutable_namespace_()->set_fingerprint(absl::HexStringToBytes(name));
  return daemon.FindNamespace(request);
}

}  // namespace

std::string FingerprintHex(const std::string& bytes) { return absl::BytesToHexString(bytes); }

std::string JoinHashes(std::span<const BlockHash> hashes) {
  std::string out;
  out.reserve(hashes.size() * BlockHash::kBytes);
  for (const BlockHash& hash : hashes)
    out.append(reinterpret_cast<const char*>(hash.bytes.data()), hash.bytes.size());
  return out;
}

absl::StatusOr<client::Namespace> FindNamespace(DaemonCalls& daemon, const std::string& name) {
  const absl::StatusOr<v1::OpenNamespaceResponse> found = Find(daemon, name);
  if (absl::IsNotFound(found.status())) {
    return absl::NotFoundError(absl::StrCat(
        "no namespace \"", name, "\"; kvctl namespaces lists them, kvctl open makes one"));
  }
  if (!found.ok()) return found.status();
  client::Namespace ns{.name = found->name(), .fingerprint = {}, .spec = {}};
  const v1::NamespaceSpec& spec = found->spec();
  if (found->fingerprint().size() != Fingerprint::kBytes || spec.block_tokens() == 0 ||
      spec.num_slices() == 0 || spec.slice_bytes() == 0) {
    return absl::InternalError("the daemon's answer to FindNamespace is not whole");
  }
  std::memcpy(ns.fingerprint.bytes.data(), found->fingerprint().data(), Fingerprint::kBytes);
  ns.spec.model = spec.model();
  ns.spec.tenant = spec.tenant();
  ns.spec.block_tokens = spec.block_tokens();
  ns.spec.shape = {.num_slices = spec.num_slices(), .slice_bytes = spec.slice_bytes()};
  return ns;
}

}  // namespace kvstore::kvctl
