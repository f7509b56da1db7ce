#include "tools/kvctl/opened_namespace.h"

#include <algorithm>
#include <cctype>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kvstore/client/wire.h"

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
  request.mutable_namespace_()->clear_name();
  request.mutable_namespace_()->set_fingerprint(absl::HexStringToBytes(name));
  return daemon.FindNamespace(request);
}

}  // namespace

std::string FingerprintHex(const std::string& bytes) { return absl::BytesToHexString(bytes); }

absl::StatusOr<client::Namespace> FindNamespace(DaemonCalls& daemon, const std::string& name) {
  const absl::StatusOr<v1::OpenNamespaceResponse> found = Find(daemon, name);
  if (absl::IsNotFound(found.status())) {
    return absl::NotFoundError(absl::StrCat(
        "no namespace \"", name, "\"; kvctl namespaces lists them, kvctl open makes one"));
  }
  if (!found.ok()) return found.status();
  return client::ReadNamespace(*found);
}

}  // namespace kvstore::kvctl
