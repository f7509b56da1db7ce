// Between client structs and wire messages. Pure functions; thread-safe.
#pragma once

#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "kvstore/client/client.h"
#include "kvstore/v1/kvstore.pb.h"

namespace kvstore::client {

// Hashes one after another, as every request carries them.
inline std::string HashBytes(std::span<const BlockHash> hashes) {
  return std::string(reinterpret_cast<const char*>(hashes.data()), hashes.size_bytes());
}
inline void FillRef(const Namespace& ns, v1::NamespaceRef* ref) {
  ref->set_fingerprint(ns.fingerprint.bytes.data(), ns.fingerprint.bytes.size());
}
void WriteSpec(const NamespaceSpec& spec, v1::NamespaceSpec* out);
// Errors: FailedPrecondition, the daemon's fingerprint of the spec is not ours: one of us is of
// another version.
absl::StatusOr<Namespace> ReadNamespace(const v1::OpenNamespaceResponse& response);
void ReadTierCounts(const google::protobuf::RepeatedPtrField<v1::TierCount>& counts,
                    std::array<uint64_t, kNumTiers>* out);

}  // namespace kvstore::client
