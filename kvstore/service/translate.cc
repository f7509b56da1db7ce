#include "kvstore/service/translate.h"

#include <grpcpp/support/status.h>
#include <openssl/sha.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/block_hasher.h"
#include "kvstore/base/log.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/text.h"
#include "kvstore/v1/kvstore.pb.h"

namespace kvstore::service {
namespace {

absl::Status TooManyBlocks(size_t blocks) {
  return absl::InvalidArgumentError(
      absl::StrCat(blocks, " blocks; at most ", kBlocksPerCallMax, " a call"));
}

uint32_t SizeOrOne(uint32_t size) { return size == 0 ? 1 : size; }

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  if (status.code() == absl::StatusCode::kInternal || status.code() == absl::StatusCode::kUnknown) {
    Log(LogLevel::kError, "internal error", {{"status", status}});
    return grpc::Status(grpc::StatusCode::INTERNAL,
                        "internal error; the daemon's log has the cause");
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

absl::StatusOr<std::vector<BlockHash>> ReadHashes(const std::string& bytes) {
  if (bytes.size() % BlockHash::kBytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("hashes: ", bytes.size(), " bytes are not a multiple of ", BlockHash::kBytes));
  }
  const size_t blocks = bytes.size() / BlockHash::kBytes;
  if (blocks > kBlocksPerCallMax) return TooManyBlocks(blocks);
  std::vector<BlockHash> hashes(blocks);
  if (blocks > 0) std::memcpy(hashes.data(), bytes.data(), bytes.size());
  return hashes;
}

absl::StatusOr<std::optional<BlockHash>> ReadParent(const std::string& bytes) {
  if (bytes.empty()) return std::optional<BlockHash>();
  if (bytes.size() != BlockHash::kBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("parent: ", bytes.size(), " bytes; valid: 32, or none for block 0"));
  }
  BlockHash parent;
  std::memcpy(parent.bytes.data(), bytes.data(), bytes.size());
  return std::optional<BlockHash>(parent);
}

absl::StatusOr<tiers::TierKind> ReadTier(v1::Tier tier) {
  switch (tier) {
    case v1::TIER_GPU:
      return tiers::TierKind::kGpu;
    case v1::TIER_DRAM:
      return tiers::TierKind::kDram;
    case v1::TIER_NVME:
      return tiers::TierKind::kNvme;
    default:
      return absl::InvalidArgumentError(absl::StrCat("tier: ", static_cast<int>(tier),
                                                     "; valid: TIER_GPU, TIER_DRAM, TIER_NVME"));
  }
}

absl::StatusOr<std::optional<tiers::TierKind>> ReadOptionalTier(v1::Tier tier) {
  if (tier == v1::TIER_UNSPECIFIED) return std::optional<tiers::TierKind>();
  ASSIGN_OR_RETURN(tiers::TierKind kind, ReadTier(tier));
  return std::optional<tiers::TierKind>(kind);
}

absl::StatusOr<NamespaceSpec> ReadSpec(const v1::NamespaceSpec& in, std::string tenant) {
  NamespaceSpec spec;
  spec.model = in.model();
  spec.weights_revision = in.weights_revision();
  spec.adapter = in.adapter();
  spec.kv_dtype = in.kv_dtype();
  if (!in.codec().empty()) spec.codec = in.codec();
  if (!in.layout().empty()) spec.layout = in.layout();
  if (in.layout_version() != 0) spec.layout_version = in.layout_version();
  spec.numerics = in.numerics();
  spec.block_tokens = in.block_tokens();
  spec.shape = {.num_slices = in.num_slices(), .slice_bytes = in.slice_bytes()};
  spec.tensor_rank = in.tensor_rank();
  spec.tensor_size = SizeOrOne(in.tensor_size());
  spec.pipeline_rank = in.pipeline_rank();
  spec.pipeline_size = SizeOrOne(in.pipeline_size());
  spec.context_rank = in.context_rank();
  spec.context_size = SizeOrOne(in.context_size());
  spec.tenant = std::move(tenant);
  spec.salt = in.salt();
  RETURN_IF_ERROR(spec.Validate());
  return spec;
}

absl::Status CheckNamespaceName(std::string_view name) {
  const bool has_control =
      std::ranges::any_of(name, [](unsigned char c) { return c < 0x20 || c == 0x7f; });
  if (!name.empty() && name.size() <= kNamespaceNameBytesMax && !has_control)
    return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("namespace name of ", name.size(),
                                                 " bytes; valid: 1 to ", kNamespaceNameBytesMax,
                                                 " without control characters"));
}

std::string StoredName(const std::string& name, const std::string& salt) {
  constexpr size_t kDigestBytes = 4;  // tells the few salts of one tenant apart
  if (name.empty() || salt.empty()) return name;
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest;
  SHA256(reinterpret_cast<const unsigned char*>(salt.data()), salt.size(), digest.data());
  const std::string_view head(reinterpret_cast<const char*>(digest.data()), kDigestBytes);
  return absl::StrCat(name, "@", absl::BytesToHexString(AbslView(head)));
}

absl::StatusOr<NamespaceKey> ReadNamespaceRef(const v1::NamespaceRef& ref,
                                              const std::string& salt) {
  NamespaceKey key;
  key.salt = salt;
  if (ref.fingerprint().empty() == ref.name().empty()) {
    return absl::InvalidArgumentError("namespace: give exactly one of fingerprint and name");
  }
  if (!ref.name().empty()) {
    RETURN_IF_ERROR(CheckNamespaceName(ref.name()));
    key.name = ref.name();
    return key;
  }
  if (ref.fingerprint().size() != Fingerprint::kBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("namespace fingerprint: ", ref.fingerprint().size(), " bytes; valid: 16"));
  }
  key.fingerprint.emplace();
  std::memcpy(key.fingerprint->bytes.data(), ref.fingerprint().data(), Fingerprint::kBytes);
  return key;
}

absl::StatusOr<store::Store::OpenedNamespace> FindNamespace(const store::Store& store,
                                                            std::string_view tenant,
                                                            const NamespaceKey& key) {
  const std::string name = StoredName(key.name, key.salt);
  absl::StatusOr<store::Store::OpenedNamespace> found =
      key.fingerprint.has_value() ? store.FindNamespace(tenant, *key.fingerprint)
                                  : store.FindNamespace(tenant, std::string_view(name));
  if (found.ok() && !key.salt.empty() && found->spec.salt != key.salt)
    return absl::NotFoundError("no such namespace: it has been opened with another salt");
  return found;
}

absl::StatusOr<BlockKeys> ReadBlockKeys(const std::string& hashes,
                                        const google::protobuf::RepeatedField<uint32_t>& tokens) {
  if (!hashes.empty() && !tokens.empty())
    return absl::InvalidArgumentError("give hashes or tokens, not both");
  BlockKeys keys;
  keys.by_tokens = !tokens.empty();
  keys.tokens.assign(tokens.begin(), tokens.end());
  ASSIGN_OR_RETURN(keys.hashes, ReadHashes(hashes));
  return keys;
}

absl::StatusOr<std::vector<BlockHash>> HashesOf(BlockKeys keys,
                                                const store::Store::OpenedNamespace& ns) {
  if (!keys.by_tokens) return std::move(keys.hashes);
  const size_t blocks = keys.tokens.size() / ns.spec.block_tokens;
  if (blocks > kBlocksPerCallMax) return TooManyBlocks(blocks);
  return HashBlocks(RootHash(ns.fingerprint), keys.tokens, ns.spec.block_tokens);
}

v1::Tier ToWire(tiers::TierKind kind) { return static_cast<v1::Tier>(static_cast<int>(kind) + 1); }

void WriteSpec(const NamespaceSpec& spec, v1::NamespaceSpec* out) {
  out->set_model(spec.model);
  out->set_weights_revision(spec.weights_revision);
  out->set_adapter(spec.adapter);
  out->set_kv_dtype(spec.kv_dtype);
  out->set_codec(spec.codec);
  out->set_layout(spec.layout);
  out->set_layout_version(spec.layout_version);
  out->set_numerics(spec.numerics);
  out->set_block_tokens(spec.block_tokens);
  out->set_num_slices(spec.shape.num_slices);
  out->set_slice_bytes(spec.shape.slice_bytes);
  out->set_tensor_rank(spec.tensor_rank);
  out->set_tensor_size(spec.tensor_size);
  out->set_pipeline_rank(spec.pipeline_rank);
  out->set_pipeline_size(spec.pipeline_size);
  out->set_context_rank(spec.context_rank);
  out->set_context_size(spec.context_size);
  out->set_tenant(spec.tenant);
  out->set_salt(spec.salt);
}

void WriteTierCounts(const std::array<uint32_t, tiers::kNumTierKinds>& counts,
                     google::protobuf::RepeatedPtrField<v1::TierCount>* out) {
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] == 0) continue;
    v1::TierCount* row = out->Add();
    row->set_tier(ToWire(static_cast<tiers::TierKind>(i)));
    row->set_blocks(counts[i]);
  }
}

void WriteMatch(const store::MatchResult& match, const NamespaceSpec& spec,
                v1::MatchResponse* out) {
  out->set_matched_blocks(match.matched_blocks);
  out->set_matched_tokens(uint64_t{match.matched_blocks} * spec.block_tokens);
  out->set_page_bytes(spec.shape.page_bytes());
  WriteTierCounts(match.by_tier, out->mutable_by_tier());
}

void WriteAcquireUpdate(const store::AcquireUpdate& update, v1::AcquireResponse* out) {
  out->set_is_first(update.is_first);
  out->set_is_last(update.is_last);
  out->set_matched_blocks(update.matched_blocks);
  if (update.is_first) out->set_lease(update.lease.value());
  if (!update.status.ok()) out->set_lost_reason(std::string(update.status.message()));
  const int count = static_cast<int>(update.ready.size());
  if (count == 0) return;
  bool is_consecutive = true;
  for (int i = 0; i < count && is_consecutive; ++i) {
    is_consecutive = update.ready[i].block == update.ready[0].block + static_cast<uint32_t>(i);
  }
  out->set_first_block(update.ready[0].block);
  // Sized once, then written through plain pointers: a prefix of thousands of blocks is a few
  // passes over memory.
  out->mutable_tier()->resize(update.ready.size());
  out->mutable_found_in()->resize(update.ready.size());
  out->mutable_slab()->Resize(count, 0);
  out->mutable_slot()->Resize(count, 0);
  out->mutable_generation()->Resize(count, 0);
  out->mutable_page_checksum()->Resize(count, 0);
  char* tier = out->mutable_tier()->data();
  char* found_in = out->mutable_found_in()->data();
  uint32_t* slab = out->mutable_slab()->mutable_data();
  uint32_t* slot = out->mutable_slot()->mutable_data();
  uint64_t* generation = out->mutable_generation()->mutable_data();
  uint64_t* checksum = out->mutable_page_checksum()->mutable_data();
  for (int i = 0; i < count; ++i) {
    const store::AcquireUpdate::Ready& ready = update.ready[i];
    tier[i] = static_cast<char>(ToWire(ready.location.tier));
    found_in[i] = static_cast<char>(ToWire(ready.from));
    slab[i] = ready.location.page.slab;
    slot[i] = ready.location.page.slot;
    generation[i] = ready.location.page.generation;
    checksum[i] = ready.location.page_checksum;
  }
  if (!is_consecutive) {
    out->mutable_block()->Resize(count, 0);
    for (int i = 0; i < count; ++i) out->mutable_block()->Set(i, update.ready[i].block);
  }
  const auto is_partial = [](const auto& ready) { return ready.leading_slices.has_value(); };
  if (std::ranges::none_of(update.ready, is_partial)) return;
  for (const auto& ready : update.ready) out->add_ready_slices(ready.leading_slices.value_or(0));
}

void WriteReserveResult(const store::ReserveResult& result, v1::ReserveResponse* out) {
  const int count = static_cast<int>(result.blocks.size());
  out->set_reservation(result.reservation.value());
  out->mutable_state()->resize(result.blocks.size());
  out->mutable_slab()->Resize(count, 0);
  out->mutable_slot()->Resize(count, 0);
  out->mutable_generation()->Resize(count, 0);
  for (int i = 0; i < count; ++i) {
    const store::ReserveResult::Block& block = result.blocks[i];
    // The wire's enumerators are the store's plus one.
    (*out->mutable_state())[i] = static_cast<char>(static_cast<int>(block.state) + 1);
    if (block.state != store::ReserveState::kReserved) continue;
    out->mutable_slab()->Set(i, block.location.page.slab);
    out->mutable_slot()->Set(i, block.location.page.slot);
    out->mutable_generation()->Set(i, block.location.page.generation);
  }
}

static_assert(static_cast<int>(store::ReserveState::kReserved) + 1 == v1::RESERVE_STATE_RESERVED);
static_assert(static_cast<int>(store::ReserveState::kExists) + 1 == v1::RESERVE_STATE_EXISTS);
static_assert(static_cast<int>(store::ReserveState::kBeingWritten) + 1 ==
              v1::RESERVE_STATE_BEING_WRITTEN);
static_assert(static_cast<int>(store::ReserveState::kNoSpace) + 1 == v1::RESERVE_STATE_NO_SPACE);

}  // namespace kvstore::service
