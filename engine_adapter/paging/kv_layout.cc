#include "engine_adapter/paging/kv_layout.h"

#include <absl/strings/str_cat.h>

namespace kvstore::engine {

std::string_view KvDtypeName(KvDtype dtype) { return dtype == KvDtype::kBf16 ? "bf16" : "f32"; }

absl::Status KvLayout::Validate() const {
  if (block_tokens < 1 || block_tokens > kBlockTokensMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("block_tokens is ", block_tokens, "; valid are 1 to ", kBlockTokensMax));
  }
  if (num_layers < 1 || num_kv_heads < 1 || head_dim < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a KV layout needs layers, kv heads and a head_dim of at least 1; got ",
                     num_layers, ", ", num_kv_heads, ", ", head_dim));
  }
  if (order == KvOrder::kLatent && num_kv_heads != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_kv_heads is ", num_kv_heads, "; layout mla has 1"));
  }
  return absl::OkStatus();
}

}  // namespace kvstore::engine
