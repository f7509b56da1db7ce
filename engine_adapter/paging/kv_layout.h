// KvLayout is where every key and value of a block lies inside its page.
//
// Layout "hnd", version 1: [layer][K|V][kv_head][token][head_dim], little-endian elements, no
// padding. The slice of a layer is contiguous, so a load can run layer by layer as plain copies.
#pragma once

#include <absl/status/status.h>

#include <cstdint>
#include <string_view>

namespace kvstore::engine {

// Element type of keys and values in a page.
enum class KvDtype : uint8_t { kBf16, kF32 };

std::string_view KvDtypeName(KvDtype dtype);  // "bf16", "f32"

struct KvLayout {
  static constexpr std::string_view kName = "hnd";
  static constexpr uint32_t kVersion = 1;
  static constexpr int64_t kBlockTokensMax = 65536;

  int64_t num_layers = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  KvDtype dtype = KvDtype::kBf16;
  int64_t block_tokens = 0;

  int64_t element_bytes() const { return dtype == KvDtype::kBf16 ? 2 : 4; }
  // Keys, or values, of one layer of a page.
  int64_t half_slice_bytes() const {
    return num_kv_heads * block_tokens * head_dim * element_bytes();
  }
  int64_t slice_bytes() const { return 2 * half_slice_bytes(); }
  int64_t page_bytes() const { return num_layers * slice_bytes(); }
  int64_t k_offset(int64_t layer) const { return layer * slice_bytes(); }
  int64_t v_offset(int64_t layer) const { return k_offset(layer) + half_slice_bytes(); }

  // Blocks that hold `tokens` tokens, the last one perhaps in part.
  int64_t BlocksOf(int64_t tokens) const { return (tokens + block_tokens - 1) / block_tokens; }

  // Errors: InvalidArgument naming the field.
  absl::Status Validate() const;
};

}  // namespace kvstore::engine
