// What a mixture of experts adds to a feed-forward: choosing the experts of a row, and adding up
// what they gave. The experts themselves are matrix products (gemm.h) over the rows that chose
// them.
//
// Bits: each row is computed from its own logits and its own experts' outputs alone, in one fixed
// order; the experts of a row are added by ascending number. So a row does not depend on which
// other rows chose the same experts, nor on where its outputs lie.
#pragma once

#include <cstdint>

namespace kvstore::kernels {

// Softmax over all experts of a row; the `top_k` largest are chosen, of equal ones the lower
// number. NaN counts as the smallest, so that there are always top_k of them; the weights are NaN
// then.
struct RouteArgs {
  const float* logits = nullptr;  // [rows, num_experts], rows logits_stride floats apart
  int64_t logits_stride = 0;
  int64_t num_experts = 0;
  int64_t top_k = 0;           // 1 to num_experts
  bool is_normalized = false;  // divide the chosen weights by their sum
  float scale = 1.0f;          // times this at the end
  int32_t* experts = nullptr;  // [rows, top_k], ascending in each row
  float* weights = nullptr;    // [rows, top_k]
};

// out[row] = sum over j of weights[row][j] * x[slots[row][j]], then + shared[row] where given.
struct CombineArgs {
  const float* x = nullptr;  // [slots, n], x_stride floats apart
  int64_t x_stride = 0;
  const int32_t* slots = nullptr;  // [rows, top_k]
  const float* weights = nullptr;  // [rows, top_k]
  int64_t top_k = 0;
  const float* shared = nullptr;  // [rows, n], shared_stride floats apart; or null
  int64_t shared_stride = 0;
  float* out = nullptr;  // [rows, n], out_stride floats apart
  int64_t out_stride = 0;
  int64_t n = 0;
};

}  // namespace kvstore::kernels
