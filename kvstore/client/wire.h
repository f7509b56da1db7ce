// Between client structs and wire messages, with the checks that every answer of a daemon gets: it
// may be of another version, or lie, and must not make the engine crash. Pure functions;
// thread-safe.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/acquire_packet.h"
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
// Errors: FailedPrecondition, the daemon's fingerprint of the spec is not ours, or the spec is not
// valid here: one of us is of another version.
absl::StatusOr<Namespace> ReadNamespace(const v1::OpenNamespaceResponse& response);
// Errors: Unavailable, more is matched than the `num_hashes` that were asked for.
absl::StatusOr<Match> ReadMatch(const v1::MatchResponse& response, size_t num_hashes);
void ReadTierCounts(const google::protobuf::RepeatedPtrField<v1::TierCount>& counts,
                    std::array<uint64_t, kNumTiers>* out);

// Takes what became readable into `columns`, an element a matched block. `leading_slices`: how many
// slices of a page there are so far, 0 for whole pages; no elements until a page comes in part.
// Errors: Unavailable, the message is not well-formed; both are as before then.
absl::Status TakeColumns(const v1::AcquireResponse& message, const PageShape& shape,
                         AcquiredColumns* columns, std::vector<uint32_t>* leading_slices);
// Whether an answer of the memory socket fits a request with `num_hashes`. Errors: Unavailable.
absl::Status CheckReply(const AcquireReply& reply, size_t num_hashes);
// Whether an answer has a known state and a place for each of `num_hashes`. Errors: Unavailable.
absl::Status CheckReserved(const v1::ReserveResponse& response, size_t num_hashes);
// Where a slot starts in its slab; nullopt: it would leave the slab.
std::optional<uint64_t> SlotOffset(uint32_t slot, const PageShape& shape, uint64_t slab_bytes);

}  // namespace kvstore::client
