// Row-local kernels, on the Vec16 of the including variant. Contract: kernels/rows.h.
#pragma once

#include "kernels/isa/exp2_impl.h"
#include "kernels/rows.h"

namespace kvstore::kernels {
namespace {

// 1 / sqrt(mean(x^2) + epsilon): sixteen chains, element i in chain i mod 16, then the fixed fold.
inline float InverseRms(const float* x, int64_t n, float epsilon) {
  Vec16 squares = Zero();
  for (int64_t i = 0; i < n; i += 16) {
    const Vec16 v = LoadN(x + i, n - i);
    squares = Fma(v, v, squares);
  }
  const float mean = ReduceAdd(squares) / static_cast<float>(n);
  return 1.0f / __builtin_sqrtf(mean + epsilon);
}

inline void NormRow(const float* x, const float* weight, int64_t n, float epsilon, float* out) {
  const Vec16 inverse = Set(InverseRms(x, n, epsilon));
  for (int64_t i = 0; i < n; i += 16) {
    const Vec16 scaled = Mul(LoadN(x + i, n - i), inverse);
    StoreN(out + i, Mul(scaled, LoadN(weight + i, n - i)), n - i);
  }
}

void AddTo(float* x, const float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    StoreN(x + i, Add(LoadN(x + i, n - i), LoadN(y + i, n - i)), n - i);
  }
}

void Norm(const NormArgs& a, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    float* x = a.x + row * a.x_stride;
    if (a.y != nullptr) AddTo(x, a.y + row * a.y_stride, a.n);
    NormRow(x, a.weight, a.n, a.epsilon, a.out + row * a.out_stride);
  }
}

inline void RotateHead(float* head, const float* cosine, const float* sine, int64_t half) {
  for (int64_t i = 0; i < half; i += 16) {
    const int64_t n = half - i;
    const Vec16 c = LoadN(cosine + i, n);
    const Vec16 s = LoadN(sine + i, n);
    const Vec16 x = LoadN(head + i, n);
    const Vec16 y = LoadN(head + half + i, n);
    StoreN(head + i, Sub(Mul(x, c), Mul(y, s)), n);
    StoreN(head + half + i, Add(Mul(y, c), Mul(x, s)), n);
  }
}

void Rope(const RopeArgs& a, int64_t row_begin, int64_t row_end) {
  const int64_t half = a.head_dim / 2;
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t head = 0; head < a.heads; ++head) {
      float* x = a.x + row * a.x_stride + head * a.head_dim;
      if (a.norm_weight != nullptr) {
        NormRow(x, a.norm_weight, a.head_dim, a.norm_epsilon, x);
      }
      RotateHead(x, a.cos + row * half, a.sin + row * half, half);
    }
  }
}

void NarrowBf16(const float* x, uint16_t* out, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) StoreBf16N(out + i, LoadN(x + i, n - i), n - i);
}

void WidenBf16Row(const uint16_t* x, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) Store(out + i, LoadBf16(x + i));
  for (; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(x[i]) << 16;
    __builtin_memcpy(out + i, &bits, sizeof(bits));
  }
}

void StoreKv(const KvStoreArgs& a, int64_t row_begin, int64_t row_end) {
  const int64_t element_bytes = a.kv_type == KvType::kBf16 ? 2 : 4;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t position = a.first_position + row;
    std::byte* page = a.pages[position / a.block_tokens] + a.offset;
    for (int64_t head = 0; head < a.kv_heads; ++head) {
      const float* from = a.x + row * a.x_stride + head * a.head_dim;
      std::byte* to =
          page + (head * a.block_tokens + position % a.block_tokens) * a.head_dim * element_bytes;
      if (a.kv_type == KvType::kBf16) {
        NarrowBf16(from, reinterpret_cast<uint16_t*>(to), a.head_dim);
      } else {
        __builtin_memcpy(to, from, static_cast<size_t>(a.head_dim) * sizeof(float));
      }
    }
  }
}

void Swiglu(const SwigluArgs& a, int64_t row_begin, int64_t row_end) {
  const Vec16 minus_log2e = Set(-1.44269504088896341f);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* gate = a.gate_up + row * a.gate_up_stride;
    const float* up = gate + a.n;
    float* out = a.out + row * a.out_stride;
    for (int64_t i = 0; i < a.n; i += 16) {
      const Vec16 g = LoadN(gate + i, a.n - i);
      const Vec16 silu = Div(g, Add(Set(1.0f), Exp2(Mul(g, minus_log2e))));
      StoreN(out + i, Mul(silu, LoadN(up + i, a.n - i)), a.n - i);
    }
  }
}

void Exp2Array(const float* x, float* out, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) StoreN(out + i, Exp2(LoadN(x + i, n - i)), n - i);
}

}  // namespace
}  // namespace kvstore::kernels
