// A mixture of experts on the GPU, beside its products: choosing experts, grouping rows by expert,
// adding up what the experts gave. Twins of kernels/experts.h; rows are gathered by LaunchEmbed().
//
// Bits: a row's choice, weights and sum depend on its own logits and its own experts' outputs alone,
// in one fixed order; experts are added by ascending number. Grouping is exact and the same every
// time: the slots of an expert are in the order of rows. Work is enqueued on `stream`; nothing
// allocates or synchronises. Errors of all: cudaErrorInvalidValue, a shape outside the stated limits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace kvstore::kernels::cuda {

inline constexpr int64_t kExpertsMax = 1024;
inline constexpr int64_t kTopKMax = 32;

// Softmax over all experts; the top_k largest are chosen, of equal ones the lower number. NaN counts
// as the smallest; the weights are NaN then.
struct RouteArgs {
  const float* logits = nullptr;  // [rows, num_experts]
  int64_t rows = 0;
  int64_t num_experts = 0;     // 1 to kExpertsMax
  int64_t top_k = 0;           // 1 to num_experts, at most kTopKMax
  bool is_normalized = false;  // divide the chosen weights by their sum
  float scale = 1.0f;          // times this at the end
  int32_t* experts = nullptr;  // [rows, top_k], ascending in each row
  float* weights = nullptr;    // [rows, top_k]
};
cudaError_t LaunchRoute(const RouteArgs& args, cudaStream_t stream);

// A slot is one row at one expert; those of an expert lie side by side.
struct GroupArgs {
  const int32_t* experts = nullptr;  // [rows, top_k], below num_experts
  int64_t rows = 0;                  // rows * top_k below 2^31
  int64_t num_experts = 0;           // 1 to kExpertsMax
  int64_t top_k = 0;
  int32_t* begins = nullptr;    // [num_experts + 1], the first slot of each expert
  int32_t* slots = nullptr;     // [rows, top_k], where each choice lies
  uint32_t* sources = nullptr;  // [rows * top_k], the row of each slot
};
cudaError_t LaunchGroup(const GroupArgs& args, cudaStream_t stream);

// out[row] = sum over j of weights[row][j] * x[slots[row][j]], then + shared[row] where given, in
// float32, rounded once.
struct CombineArgs {
  const __nv_bfloat16* x = nullptr;       // [slots, n]
  const int32_t* slots = nullptr;         // [rows, top_k]
  const float* weights = nullptr;         // [rows, top_k]
  const __nv_bfloat16* shared = nullptr;  // [rows, n] or null
  __nv_bfloat16* out = nullptr;           // [rows, n]
  int64_t rows = 0;
  int64_t top_k = 0;
  int64_t n = 0;  // a multiple of 8
};
cudaError_t LaunchCombine(const CombineArgs& args, cudaStream_t stream);

}  // namespace kvstore::kernels::cuda
