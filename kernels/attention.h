// Causal attention of one sequence over paged keys and values, grouped queries (GQA), online
// softmax. Values may be shorter than keys, and may be the front of them: then this is the latent
// attention (MLA) of one shared head.
//
// Bits: keys are taken in tiles that start at absolute multiples of kAttentionTileKeys, ascending,
// and each query row is computed apart from the others. So the result of a row does not depend on
// which other rows are computed with it, on block_tokens, on threads, or on whether its keys were
// computed or loaded. A page is never read past the last token that the queries may see: what lies
// behind may be anything, NaN too.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvstore::kernels {

// Part of the numerics: changing it changes the last bits of every result. 128 measured best of 64,
// 128 and 256.
inline constexpr int64_t kAttentionTileKeys = 128;

// Query rows (tokens x query heads of one kv head) of one call: enough that widening a tile of keys
// costs little.
inline constexpr int64_t kAttentionRowsMax = 192;

enum class KvType : uint8_t { kBf16, kF32 };

struct AttentionArgs {
  const float* q =
      nullptr;  // [num_tokens, kv_heads, group, head_dim], tokens q_stride floats apart
  int64_t q_stride = 0;
  float* out = nullptr;  // [num_tokens, kv_heads, group, value_dim], tokens out_stride floats apart
  int64_t out_stride = 0;
  const std::byte* const* pages =
      nullptr;  // page i holds tokens [i * block_tokens, (i + 1) * block_tokens)
  int64_t block_tokens = 0;
  // Byte offsets inside a page of this layer's keys and values; each is [kv_heads, block_tokens,
  // head_dim] of kv_type. Of a value's row the first value_dim elements are read.
  int64_t k_offset = 0;
  int64_t v_offset = 0;
  KvType kv_type = KvType::kBf16;
  int64_t group = 0;           // query heads of a kv head
  int64_t head_dim = 0;        // a multiple of 16
  int64_t value_dim = 0;       // a multiple of 16, at most head_dim
  float scale = 0.0f;          // usually 1 / sqrt(head_dim)
  int64_t first_position = 0;  // absolute position of query token 0
};

// The query tokens [token_begin, token_end) of one kv head. (token_end - token_begin) * group <=
// kAttentionRowsMax, unless it is one token: then group itself must not exceed it.
struct AttentionBlock {
  int64_t kv_head = 0;
  int64_t token_begin = 0;
  int64_t token_end = 0;
};

// Scratch of one call, in floats.
constexpr int64_t AttentionScratchFloats(int64_t head_dim) {
  return 2 * kAttentionRowsMax * head_dim          // queries, accumulated output
         + kAttentionRowsMax * kAttentionTileKeys  // scores
         + 2 * kAttentionTileKeys * head_dim       // keys and values of the tile
         + 3 * kAttentionRowsMax + head_dim + 64;  // running maximum, sum, scale; a row of zeros
}

}  // namespace kvstore::kernels
