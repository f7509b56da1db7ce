// Router and sum of a mixture of experts, on the Vec16 of the including variant. Contract:
// kernels/experts.h.
#pragma once

#include "kernels/experts.h"
#include "kernels/isa/exp2_impl.h"

namespace kvstore::kernels {
namespace {

inline float Comparable(float logit) { return logit == logit ? logit : -__builtin_inff(); }

// The expert that follows `last` in the order of falling logits, equal ones by number; after -1 the
// first.
inline int32_t NextExpert(const float* logits, int64_t num_experts, int32_t last) {
  int32_t best = -1;
  for (int32_t i = 0; i < num_experts; ++i) {
    const float value = Comparable(logits[i]);
    if (last >= 0) {
      const float bound = Comparable(logits[last]);
      if (value > bound || (value == bound && i <= last)) continue;
    }
    if (best < 0 || value > Comparable(logits[best])) best = i;
  }
  return best;
}

// exp(logit - maximum) summed over all experts: sixteen chains, then the fixed fold.
inline float SumOfExponentials(const float* logits, int64_t n, float maximum) {
  const Vec16 shift = Set(maximum), log2e = Set(1.44269504088896341f);
  Vec16 sum = Zero();
  for (int64_t i = 0; i < n; i += 16) {
    float lanes[16];
    for (int64_t j = 0; j < 16; ++j) lanes[j] = i + j < n ? logits[i + j] : -__builtin_inff();
    sum = Add(sum, Exp2(Mul(Sub(Load(lanes), shift), log2e)));
  }
  return ReduceAdd(sum);
}

inline void RouteRow(const RouteArgs& a, const float* logits, int32_t* experts, float* weights) {
  int32_t last = -1;
  for (int64_t k = 0; k < a.top_k; ++k) {
    last = NextExpert(logits, a.num_experts, last);
    int64_t at = k;  // kept in ascending order of numbers
    for (; at > 0 && experts[at - 1] > last; --at) experts[at] = experts[at - 1];
    experts[at] = last;
  }
  const float maximum = Comparable(logits[NextExpert(logits, a.num_experts, -1)]);
  const float total = SumOfExponentials(logits, a.num_experts, maximum);
  float chosen = 0.0f;
  for (int64_t k = 0; k < a.top_k; ++k) {
    weights[k] = Exp2((logits[experts[k]] - maximum) * 1.44269504088896341f) / total;
    chosen += weights[k];
  }
  for (int64_t k = 0; k < a.top_k; ++k) {
    if (a.is_normalized) weights[k] /= chosen;
    weights[k] *= a.scale;
  }
}

void Route(const RouteArgs& a, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    RouteRow(a, a.logits + row * a.logits_stride, a.experts + row * a.top_k,
             a.weights + row * a.top_k);
  }
}

void Combine(const CombineArgs& a, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int32_t* slots = a.slots + row * a.top_k;
    const float* weights = a.weights + row * a.top_k;
    for (int64_t i = 0; i < a.n; i += 16) {
      Vec16 sum = Zero();
      for (int64_t k = 0; k < a.top_k; ++k) {
        sum = Fma(Set(weights[k]), LoadN(a.x + slots[k] * a.x_stride + i, a.n - i), sum);
      }
      if (a.shared != nullptr) {
        sum = Add(sum, LoadN(a.shared + row * a.shared_stride + i, a.n - i));
      }
      StoreN(a.out + row * a.out_stride + i, sum, a.n - i);
    }
  }
}

}  // namespace
}  // namespace kvstore::kernels
