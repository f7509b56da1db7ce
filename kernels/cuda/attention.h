// Causal attention over paged keys and values on the GPU, grouped queries, bf16 in and out, float32
// in between. One kernel family for a whole prompt, a suffix behind a long prefix, and decode.
//
// Bits: a row (one query head of one token) depends on its own query and the keys it may see, and
// on nothing else: not on the other rows of the launch, on where a pass began, on the grid, or on
// whether segments ran in one block or in many. Keys are taken in tiles of kAttentionTileKeys at
// absolute positions, ascending. Every kAttentionSegmentKeys keys the running softmax starts
// afresh, and segments are folded from the left with spelled-out roundings, in the block that
// computed them or in a second launch alike. A tile or a segment that a row may not see changes
// nothing in it. Keys and values behind the last token of the pass are never used: they may be NaN.
//
// Runs on compute capability 9.0 only (wgmma, tensor copies).
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace kvstore::kernels::cuda {

// Both are part of the numerics: changing one changes the last bits of every result.
inline constexpr int kAttentionTileKeys = 128;
inline constexpr int kAttentionSegmentKeys = 1024;

// All pages of one pool as the copy engine of the multiprocessors sees them. `base` is aligned to
// 256 bytes; every page lies in [base, base + pool_bytes), which may be up to 256 GiB, and starts
// at a multiple of 256 bytes from `base`.
struct KvPool {
  CUtensorMap map;
  const std::byte* base = nullptr;
};

// Errors: cudaErrorInvalidValue, a shape outside the limits; cudaErrorNotSupported, no such driver
// call. head_dim is 64 or 128, block_tokens a multiple of 64.
cudaError_t MakeKvPool(const std::byte* base, size_t pool_bytes, int head_dim, int block_tokens,
                       KvPool* pool);

// `num_sequences` sequences of `num_tokens` new tokens each: prefill is one sequence, decode many
// of one token.
struct AttentionArgs {
  const __nv_bfloat16* q = nullptr;  // [sequences, tokens, kv_heads, group, head_dim]
  int64_t q_stride = 0;              // elements from token to token
  __nv_bfloat16* out = nullptr;      // same shape
  int64_t out_stride = 0;
  const std::byte* const* pages = nullptr;   // device, [sequences, pages_stride]
  int64_t pages_stride = 0;                  // pages from sequence to sequence
  const int32_t* first_positions = nullptr;  // device, [sequences], of token 0
  int32_t num_sequences = 1;
  int32_t num_tokens = 1;
  int32_t keys_max = 0;  // host's bound: first position + num_tokens <= keys_max of every sequence
  int32_t kv_heads = 0;
  int32_t group = 0;     // query heads of a kv head
  int32_t head_dim = 0;  // 64 or 128
  int32_t block_tokens = 0;
  // Byte offsets inside a page of this layer's keys and values, multiples of 256.
  int64_t k_offset = 0;
  int64_t v_offset = 0;
  float scale = 0.0f;  // > 0; usually 1 / sqrt(head_dim)
  float* workspace = nullptr;
};

// How a launch is spread over the device. Any choice gives the same bits.
enum class AttentionSplit : uint8_t {
  kAuto,      // by segments where whole rows would leave multiprocessors idle
  kNever,     // a block computes all segments of its rows; one sequence only
  kSegments,  // a block computes one segment; a second launch folds
};

// Bytes that `args.workspace` must have when segments are split; 0 where they are not.
size_t AttentionWorkspaceBytes(const AttentionArgs& args, int num_multiprocessors,
                               AttentionSplit split);

// Errors: cudaErrorInvalidValue, a shape outside the limits above.
cudaError_t LaunchAttention(const AttentionArgs& args, const KvPool& pool, int num_multiprocessors,
                            AttentionSplit split, cudaStream_t stream);

}  // namespace kvstore::kernels::cuda
