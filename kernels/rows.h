// Row-local operations of a transformer layer: arguments of the kernels that never mix rows.
// Bits: each row uses one fixed order of operations, the same on every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention.h"

namespace kvstore::kernels {

// x += y (where y is given), then out = x / sqrt(mean(x^2) + eps) * weight.
struct NormArgs {
  float* x = nullptr;             // [rows, n], stride x_stride; updated when y is given
  const float* y = nullptr;       // [rows, n], stride y_stride; or null
  const float* weight = nullptr;  // [n]
  float* out = nullptr;           // [rows, n], stride out_stride; may be x itself
  int64_t x_stride = 0;
  int64_t y_stride = 0;
  int64_t out_stride = 0;
  int64_t n = 0;
  float epsilon = 0.0f;
};

// Rotary embedding of `heads` heads in place, the two halves of a head forming the pairs (Hugging
// Face order), after an optional RMS norm of each head (Qwen3).
struct RopeArgs {
  float* x = nullptr;  // [rows, heads, head_dim], rows x_stride floats apart
  int64_t x_stride = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  const float* cos = nullptr;  // [rows, head_dim / 2], of each row's own position
  const float* sin = nullptr;
  const float* norm_weight = nullptr;  // [head_dim] or null
  float norm_epsilon = 0.0f;
};

// Writes keys or values of rows into pages: row r goes to absolute position first_position + r.
struct KvStoreArgs {
  const float* x = nullptr;  // [rows, kv_heads, head_dim], rows x_stride floats apart
  int64_t x_stride = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  std::byte* const* pages = nullptr;
  int64_t block_tokens = 0;
  int64_t offset = 0;  // of [kv_heads, block_tokens, head_dim] inside a page, bytes
  KvType kv_type = KvType::kBf16;
  int64_t first_position = 0;
};

// out = silu(gate) * up.
struct SwigluArgs {
  const float* gate_up = nullptr;  // [rows, 2 n]: gate first; rows gate_up_stride floats apart
  int64_t gate_up_stride = 0;
  float* out = nullptr;  // [rows, n]
  int64_t out_stride = 0;
  int64_t n = 0;
};

}  // namespace kvstore::kernels
