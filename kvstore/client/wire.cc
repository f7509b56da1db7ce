#include "kvstore/client/wire.h"

#include <cstring>

namespace kvstore::client {

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
  if (response.fingerprint().size() == Fingerprint::kBytes) {
    std::memcpy(ns.fingerprint.bytes.data(), response.fingerprint().data(), Fingerprint::kBytes);
    // With a tenant's salt, which clients are not told, it cannot be computed here.
    if (response.has_tenant_salt() || ns.fingerprint == spec.ComputeFingerprint()) return ns;
  }
  return absl::FailedPreconditionError(
      "the daemon's fingerprint of this namespace is not ours: client and daemon differ in "
      "version");
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

}  // namespace kvstore::client
