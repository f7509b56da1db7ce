#include "kvstore/client/wire.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"

namespace kvstore::client {
namespace {

bool IsWireTier(uint8_t tier) { return tier >= 1 && tier <= kNumTiers; }

// Writes `count` elements of a packed field into a column, at `positions` or one after another from
// `first`.
template <typename T>
void Scatter(const T* values, size_t count, const uint32_t* positions, uint32_t first,
             std::vector<T>* column) {
  if (positions == nullptr) {
    std::memcpy(column->data() + first, values, count * sizeof(T));
    return;
  }
  for (size_t i = 0; i < count; ++i) (*column)[positions[i]] = values[i];
}

// Of a message whose other columns are well-formed. `tiers`: before it came; 0: nothing is there.
absl::Status TakeSlices(const v1::AcquireResponse& message, const PageShape& shape,
                        const std::vector<uint8_t>& tiers, std::vector<uint32_t>* leading_slices) {
  const int count = message.slab_size();
  const auto position = [&message](int i) {
    return message.block_size() == 0 ? message.first_block() + static_cast<uint32_t>(i)
                                     : message.block(i);
  };
  if (message.ready_slices_size() == 0) {
    for (int i = 0; i < count && !leading_slices->empty(); ++i) (*leading_slices)[position(i)] = 0;
    return absl::OkStatus();
  }
  for (int i = 0; i < count; ++i) {
    const uint32_t block = position(i);
    const bool was_whole =
        tiers[block] != 0 && (leading_slices->empty() || (*leading_slices)[block] == 0);
    const uint32_t ready = message.ready_slices(i);
    if (ready >= shape.num_slices || (ready > 0 && was_whole))
      return absl::UnavailableError("Acquire: slices that a page cannot have");
  }
  leading_slices->resize(tiers.size());
  for (int i = 0; i < count; ++i) (*leading_slices)[position(i)] = message.ready_slices(i);
  return absl::OkStatus();
}

}  // namespace

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
  out->set_salt(spec.salt);
}

absl::StatusOr<Namespace> ReadNamespace(const v1::OpenNamespaceResponse& response) {
  const v1::NamespaceSpec& in = response.spec();
  Namespace ns;
  ns.name = response.name();
  NamespaceSpec& spec = ns.spec;
  spec.model = in.model();
  spec.weights_revision = in.weights_revision();
  spec.adapter = in.adapter();
  spec.kv_dtype = in.kv_dtype();
  spec.codec = in.codec();
  spec.layout = in.layout();
  spec.layout_version = in.layout_version();
  spec.numerics = in.numerics();
  spec.block_tokens = in.block_tokens();
  spec.shape = {.num_slices = in.num_slices(), .slice_bytes = in.slice_bytes()};
  spec.tensor_rank = in.tensor_rank();
  spec.tensor_size = in.tensor_size();
  spec.pipeline_rank = in.pipeline_rank();
  spec.pipeline_size = in.pipeline_size();
  spec.context_rank = in.context_rank();
  spec.context_size = in.context_size();
  spec.tenant = in.tenant();
  spec.salt = in.salt();
  // Whoever computes with a shape of no page, or with blocks of no tokens, crashes.
  if (!spec.Validate().ok()) {
    return absl::FailedPreconditionError(
        "the daemon's spec of this namespace is not valid here: client and daemon differ in "
        "version");
  }
  if (response.fingerprint().size() == Fingerprint::kBytes) {
    std::memcpy(ns.fingerprint.bytes.data(), response.fingerprint().data(), Fingerprint::kBytes);
    // With a tenant's salt, which clients are not told, it cannot be computed here.
    if (response.has_tenant_salt() || ns.fingerprint == spec.ComputeFingerprint()) return ns;
  }
  return absl::FailedPreconditionError(
      "the daemon's fingerprint of this namespace is not ours: client and daemon differ in "
      "version");
}

absl::StatusOr<Match> ReadMatch(const v1::MatchResponse& response, size_t num_hashes) {
  if (response.matched_blocks() > num_hashes)
    return absl::UnavailableError("Match: an answer that does not fit the request");
  Match match{.matched_blocks = response.matched_blocks(),
              .matched_tokens = response.matched_tokens(),
              .by_tier = {},
              .page_bytes = response.page_bytes()};
  ReadTierCounts(response.by_tier(), &match.by_tier);
  return match;
}

void ReadTierCounts(const google::protobuf::RepeatedPtrField<v1::TierCount>& counts,
                    std::array<uint64_t, kNumTiers>* out) {
  out->fill(0);
  for (const v1::TierCount& count : counts) {
    const int tier = static_cast<int>(count.tier()) - 1;
    if (tier >= 0 && tier < static_cast<int>(kNumTiers))
      (*out)[static_cast<size_t>(tier)] = count.blocks();
  }
}

absl::Status TakeColumns(const v1::AcquireResponse& message, const PageShape& shape,
                         AcquiredColumns* columns, std::vector<uint32_t>* leading_slices) {
  const size_t count = static_cast<size_t>(message.slab_size());
  const bool are_even =
      static_cast<size_t>(message.slot_size()) == count &&
      static_cast<size_t>(message.generation_size()) == count &&
      static_cast<size_t>(message.page_checksum_size()) == count &&
      message.tier().size() == count && message.found_in().size() == count &&
      (message.block_size() == 0 || static_cast<size_t>(message.block_size()) == count) &&
      (message.ready_slices_size() == 0 ||
       static_cast<size_t>(message.ready_slices_size()) == count);
  if (!are_even) return absl::UnavailableError("Acquire: columns differ in length");
  if (count == 0) return absl::OkStatus();
  const size_t matched = columns->size();
  const uint32_t* positions = message.block_size() == 0 ? nullptr : message.block().data();
  const uint32_t first = message.first_block();
  const bool are_inside =
      positions == nullptr
          ? first <= matched && count <= matched - first
          : std::all_of(positions, positions + count, [&](uint32_t p) { return p < matched; });
  if (!are_inside) return absl::UnavailableError("Acquire: a block outside of the match");
  const auto* tiers = reinterpret_cast<const uint8_t*>(message.tier().data());
  const auto* found_in = reinterpret_cast<const uint8_t*>(message.found_in().data());
  if (!std::all_of(tiers, tiers + count, IsWireTier) ||
      !std::all_of(found_in, found_in + count, IsWireTier)) {
    return absl::UnavailableError("Acquire: an unknown tier");
  }
  RETURN_IF_ERROR(TakeSlices(message, shape, columns->tier, leading_slices));
  Scatter(message.slab().data(), count, positions, first, &columns->slab);
  Scatter(message.slot().data(), count, positions, first, &columns->slot);
  Scatter(message.generation().data(), count, positions, first, &columns->generation);
  Scatter(message.page_checksum().data(), count, positions, first, &columns->page_checksum);
  Scatter(found_in, count, positions, first, &columns->found_in);
  Scatter(tiers, count, positions, first, &columns->tier);
  return absl::OkStatus();
}

absl::Status CheckReply(const AcquireReply& reply, size_t num_hashes) {
  const AcquiredColumns& blocks = reply.blocks;
  if (blocks.size() <= num_hashes && std::ranges::all_of(blocks.tier, IsWireTier) &&
      std::ranges::all_of(blocks.found_in, IsWireTier)) {
    return absl::OkStatus();
  }
  return absl::UnavailableError("Acquire: a reply that does not fit the request");
}

absl::Status CheckReserved(const v1::ReserveResponse& response, size_t num_hashes) {
  if (response.state().size() != num_hashes ||
      static_cast<size_t>(response.slab_size()) != num_hashes ||
      static_cast<size_t>(response.slot_size()) != num_hashes) {
    return absl::UnavailableError("Reserve: columns differ in length");
  }
  for (const unsigned char state : response.state()) {
    if (state < v1::RESERVE_STATE_RESERVED || state > v1::RESERVE_STATE_NO_SPACE)
      return absl::UnavailableError(absl::StrCat("Reserve: unknown state ", int{state}));
  }
  return absl::OkStatus();
}

std::optional<uint64_t> SlotOffset(uint32_t slot, const PageShape& shape, uint64_t slab_bytes) {
  const uint64_t slot_bytes = shape.slot_bytes();
  const uint64_t offset = uint64_t{slot} * slot_bytes;
  if (offset > slab_bytes || slot_bytes > slab_bytes - offset) return std::nullopt;
  return offset;
}

}  // namespace kvstore::client
