// KvLayout is where every key and value of a block lies inside its page. Little-endian elements, no
// padding. The slice of a layer is contiguous, so a load can run layer by layer as plain copies.
//
// "hnd", version 1: [layer][K|V][kv_head][token][head_dim].
// "mla", version 1: [layer][token][head_dim], one row a token for all heads: the latent vector after
// its norm, then the shared key after its rotation, the two halves of its pairs apart. Keys are whole
// rows, values are the front of them.
//
// Name and version are part of the cache namespace, so pages of one layout are never taken for those
// of another; what is stored under a version never changes.
#pragma once

#include <absl/status/status.h>

#include <cstdint>
#include <string_view>

namespace kvstore::engine {

// Element type of keys and values in a page.
enum class KvDtype : uint8_t { kBf16, kF32 };

std::string_view KvDtypeName(KvDtype dtype);  // "bf16", "f32"

enum class KvOrder : uint8_t { kHeads, kLatent };

struct KvLayout {
  static constexpr int64_t kBlockTokensMax = 65536;

  KvOrder order = KvOrder::kHeads;
  int64_t num_layers = 0;
  int64_t num_kv_heads = 0;  // 1 for kLatent
  int64_t head_dim = 0;      // elements of a row
  KvDtype dtype = KvDtype::kBf16;
  int64_t block_tokens = 0;

  std::string_view name() const { return order == KvOrder::kHeads ? "hnd" : "mla"; }
  uint32_t version() const { return 1; }

  int64_t element_bytes() const { return dtype == KvDtype::kBf16 ? 2 : 4; }
  // The rows of one layer of a page: keys, values, or both in one.
  int64_t rows_bytes() const { return num_kv_heads * block_tokens * head_dim * element_bytes(); }
  int64_t slice_bytes() const { return order == KvOrder::kHeads ? 2 * rows_bytes() : rows_bytes(); }
  int64_t page_bytes() const { return num_layers * slice_bytes(); }
  int64_t k_offset(int64_t layer) const { return layer * slice_bytes(); }
  int64_t v_offset(int64_t layer) const { return k_offset(layer) + slice_bytes() - rows_bytes(); }

  // Blocks that hold `tokens` tokens, the last one perhaps in part.
  int64_t BlocksOf(int64_t tokens) const { return (tokens + block_tokens - 1) / block_tokens; }

  // Errors: InvalidArgument naming the field.
  absl::Status Validate() const;
};

}  // namespace kvstore::engine
