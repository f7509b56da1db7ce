// Between wire messages and plain structs, with the checks that every field gets. Pure functions;
// thread-safe.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/base/block_hash.h"
#include "kvstore/base/namespace_spec.h"
#include "kvstore/store/store.h"

namespace grpc {
class Status;
}
namespace kvstore::v1 {
class AcquireResponse;
class MatchResponse;
class NamespaceRef;
class NamespaceSpec;
class ReserveResponse;
class TierCount;
enum Tier : int;
}  // namespace kvstore::v1
namespace google::protobuf {
template <typename T>
class RepeatedPtrField;
template <typename T>
class RepeatedField;
}  // namespace google::protobuf

namespace kvstore::service {

inline constexpr size_t kBlocksPerCallMax = 65536;
inline constexpr size_t kPieceBytesMax = 1 << 20;  // of Put and Get
inline constexpr size_t kNamespaceNameBytesMax = 256;
// Control messages, and what 65,536 hashes and their columns need on top.
inline constexpr int kMessageBytesMax = (4 << 20) + static_cast<int>(kBlocksPerCallMax) * 64;

// The code and message of `status`; those of internal errors stay in the log.
grpc::Status ToGrpc(const absl::Status& status);

// Errors (all of these): InvalidArgument naming the field and what is valid.
absl::StatusOr<std::vector<BlockHash>> ReadHashes(const std::string& bytes);
absl::StatusOr<std::optional<BlockHash>> ReadParent(const std::string& bytes);
absl::StatusOr<tiers::TierKind> ReadTier(v1::Tier tier);
absl::StatusOr<std::optional<tiers::TierKind>> ReadOptionalTier(v1::Tier tier);
// Spec with defaults filled in and the tenant given; validated.
absl::StatusOr<NamespaceSpec> ReadSpec(const v1::NamespaceSpec& spec, std::string tenant);
// 1 to 256 bytes without control characters.
absl::Status CheckNamespaceName(std::string_view name);

// By fingerprint or by name: exactly one is set.
struct NamespaceKey {
  std::optional<Fingerprint> fingerprint;
  std::string name;
  std::string salt;  // of the tenant (tenants file): no namespace of another salt is found
};
absl::StatusOr<NamespaceKey> ReadNamespaceRef(const v1::NamespaceRef& ref, const std::string& salt);
// The name under which the store has what the caller calls `name`. With a tenant's salt it carries
// a digest of it: after the salt has changed, the same name means a new namespace.
std::string StoredName(const std::string& name, const std::string& salt);
// On the core thread.
absl::StatusOr<store::Store::OpenedNamespace> FindNamespace(const store::Store& store,
                                                            std::string_view tenant,
                                                            const NamespaceKey& key);

// Blocks of a call: by hash, or by tokens that are hashed once the namespace is known.
struct BlockKeys {
  std::vector<BlockHash> hashes;
  std::vector<uint32_t> tokens;
  bool by_tokens = false;
};
absl::StatusOr<BlockKeys> ReadBlockKeys(const std::string& hashes,
                                        const google::protobuf::RepeatedField<uint32_t>& tokens);
// Hashes of the whole blocks. Any thread. Errors: InvalidArgument, more than 65,536 blocks.
absl::StatusOr<std::vector<BlockHash>> HashesOf(BlockKeys keys,
                                                const store::Store::OpenedNamespace& ns);

v1::Tier ToWire(tiers::TierKind kind);
void WriteSpec(const NamespaceSpec& spec, v1::NamespaceSpec* out);
void WriteTierCounts(const std::array<uint32_t, tiers::kNumTierKinds>& counts,
                     google::protobuf::RepeatedPtrField<v1::TierCount>* out);
void WriteMatch(const store::MatchResult& match, const NamespaceSpec& spec, v1::MatchResponse* out);
void WriteAcquireUpdate(const store::AcquireUpdate& update, v1::AcquireResponse* out);
void WriteReserveResult(const store::ReserveResult& result, v1::ReserveResponse* out);

}  // namespace kvstore::service
