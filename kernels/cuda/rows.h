// Row-local operations of a transformer layer on the GPU: twins of kernels/rows.h in bf16 with
// float32 in between, each result rounded once.
//
// Bits: a row uses one fixed order of operations, set by its width alone; never the number of rows,
// where the row lies, or the grid. Work is enqueued on `stream`; nothing allocates or synchronises.
// Errors of all: cudaErrorInvalidValue, a shape outside the stated limits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace kvstore::kernels::cuda {

// out[row] = table[tokens[row]].
struct EmbedArgs {
  const __nv_bfloat16* table = nullptr;  // [vocabulary, n]
  const uint32_t* tokens = nullptr;      // device, [rows], inside the vocabulary
  __nv_bfloat16* out = nullptr;          // [rows, n]
  int64_t rows = 0;
  int64_t n = 0;  // a multiple of 8
};
cudaError_t LaunchEmbed(const EmbedArgs& args, cudaStream_t stream);

// x += y (where y is given), then out = x / sqrt(mean(x^2) + epsilon) * weight.
struct NormArgs {
  __nv_bfloat16* x = nullptr;             // [rows, n]; updated when y is given
  const __nv_bfloat16* y = nullptr;       // [rows, n] or null
  const __nv_bfloat16* weight = nullptr;  // [n]
  __nv_bfloat16* out = nullptr;           // [rows, n]; may be x
  int64_t rows = 0;
  int64_t n = 0;  // a multiple of 8, at most kNormWidthMax
  float epsilon = 0.0f;
};
inline constexpr int64_t kNormWidthMax = 16384;
cudaError_t LaunchNorm(const NormArgs& args, cudaStream_t stream);

// cosine and sine of position * frequency, the angle rounded to float32, computed in float64:
// table[position][i] for positions [0, positions).
struct RopeTableArgs {
  const float* inverse_frequencies = nullptr;  // device, [half]
  float2* table = nullptr;                     // [positions, half]
  int64_t positions = 0;
  int64_t half = 0;
};
cudaError_t LaunchRopeTable(const RopeTableArgs& args, cudaStream_t stream);

// Of the rows of a fused q, k, v product: RMS norm of each q and k head (Qwen3) where weights are
// given, rotary embedding with halves of a head as pairs, then q in place, k and v into pages.
// Row r is token r % num_tokens of sequence r / num_tokens, at positions[r].
struct RopeAndStoreArgs {
  __nv_bfloat16* qkv = nullptr;  // [rows, heads + 2 kv_heads, head_dim]; only q is changed
  int64_t rows = 0;
  int32_t num_tokens = 0;  // of a sequence; rows is a multiple
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;                   // 64 or 128
  const float2* table = nullptr;          // of LaunchRopeTable
  const int32_t* positions = nullptr;     // device, [rows]
  const __nv_bfloat16* q_norm = nullptr;  // [head_dim]; both or none
  const __nv_bfloat16* k_norm = nullptr;
  float norm_epsilon = 0.0f;
  std::byte* const* pages = nullptr;  // device, [sequences, pages_stride]
  int64_t pages_stride = 0;
  int32_t block_tokens = 0;
  int64_t k_offset = 0;  // bytes inside a page, each [kv_heads, block_tokens, head_dim]
  int64_t v_offset = 0;
};
cudaError_t LaunchRopeAndStore(const RopeAndStoreArgs& args, cudaStream_t stream);

// out = silu(gate) * up.
struct SwigluArgs {
  const __nv_bfloat16* gate_up = nullptr;  // [rows, 2 n], gate first
  __nv_bfloat16* out = nullptr;            // [rows, n]
  int64_t rows = 0;
  int64_t n = 0;  // a multiple of 8
};
cudaError_t LaunchSwiglu(const SwigluArgs& args, cudaStream_t stream);

// The index of the largest logit of each row; ties go to the smaller index, NaNs are passed over, 0
// when all are NaN: what kernels/sampling.h's ArgMax says.
struct ArgMaxArgs {
  const float* logits = nullptr;  // [rows, n]
  uint32_t* tokens = nullptr;     // device, [rows]
  int64_t rows = 0;
  int64_t n = 0;  // below 2^31
};
cudaError_t LaunchArgMax(const ArgMaxArgs& args, cudaStream_t stream);

}  // namespace kvstore::kernels::cuda
