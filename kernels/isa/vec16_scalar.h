// Vec16 for any CPU: sixteen floats, one operation at a time. Every instruction-set variant offers
// the same sixteen-lane interface with the same rounding, so a kernel written on Vec16 gives the
// same bits everywhere.
//
// The interface (all variants): Zero, Set, Load, LoadN, LoadBf16, Store, StoreN, StoreBf16N, Fma,
// Add, Sub, Mul, Div, Max, Min, Sqrt, Pow2OfMagic, ReduceAdd, ReduceMax, TransposeBf16,
// TransposeF32. Fma rounds once. Max(a, b) and Min(a, b) give b when either is NaN, as the x86
// instructions do. ReduceAdd folds 16 -> 8 -> 4 -> 2 -> 1, lane i with lane i + half.
#pragma once

#include <stdint.h>

namespace kvstore::kernels {
namespace {

struct Vec16 {
  float lane[16];
};

inline Vec16 Set(float x) {
  Vec16 r;
  for (float& lane : r.lane) lane = x;
  return r;
}
inline Vec16 Zero() { return Set(0.0f); }
inline Vec16 LoadN(const float* p, int64_t n) {
  Vec16 r = Zero();
  for (int64_t i = 0; i < n && i < 16; ++i) r.lane[i] = p[i];
  return r;
}
inline Vec16 Load(const float* p) { return LoadN(p, 16); }
inline void StoreN(float* p, const Vec16& x, int64_t n) {
  for (int64_t i = 0; i < n && i < 16; ++i) p[i] = x.lane[i];
}
inline void Store(float* p, const Vec16& x) { StoreN(p, x, 16); }

inline uint32_t BitsOf(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float FloatOf(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

inline Vec16 LoadBf16(const uint16_t* p) {
  Vec16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = FloatOf(static_cast<uint32_t>(p[i]) << 16);
  return r;
}
// Rounds to nearest even; a NaN becomes a quiet NaN.
inline void StoreBf16N(uint16_t* p, const Vec16& x, int64_t n) {
  for (int64_t i = 0; i < n && i < 16; ++i) {
    const uint32_t bits = BitsOf(x.lane[i]);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    p[i] = static_cast<uint16_t>(is_nan ? ((bits >> 16) | 0x40u) : rounded);
  }
}

#define KVSTORE_LANEWISE(name, expression)            \
  inline Vec16 name(const Vec16& a, const Vec16& b) { \
    Vec16 r;                                          \
    for (int i = 0; i < 16; ++i) {                    \
      const float x = a.lane[i];                      \
      const float y = b.lane[i];                      \
      r.lane[i] = (expression);                       \
    }                                                 \
    return r;                                         \
  }
KVSTORE_LANEWISE(Add, x + y)
KVSTORE_LANEWISE(Sub, x - y)
KVSTORE_LANEWISE(Mul, x* y)
KVSTORE_LANEWISE(Div, x / y)
KVSTORE_LANEWISE(Max, x > y ? x : y)
KVSTORE_LANEWISE(Min, x < y ? x : y)
#undef KVSTORE_LANEWISE

inline Vec16 Fma(const Vec16& a, const Vec16& b, const Vec16& c) {
  Vec16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]);
  return r;
}
inline Vec16 Sqrt(const Vec16& a) {
  Vec16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = __builtin_sqrtf(a.lane[i]);
  return r;
}

// For magic = n + 1.5 * 2^23 with n in [-127, 128]: 2^n, with 0 for n = -127 and infinity for n =
// 128.
inline Vec16 Pow2OfMagic(const Vec16& magic) {
  Vec16 r;
  for (int i = 0; i < 16; ++i) r.lane[i] = FloatOf((BitsOf(magic.lane[i]) + 127u) << 23);
  return r;
}

inline float ReduceAdd(Vec16 x) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) x.lane[i] = x.lane[i] + x.lane[i + half];
  }
  return x.lane[0];
}
inline float ReduceMax(Vec16 x) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      x.lane[i] = x.lane[i] > x.lane[i + half] ? x.lane[i] : x.lane[i + half];
    }
  }
  return x.lane[0];
}

// dst[d][i] = src[i][d] for 16 rows i and `dims` columns d (a multiple of 8).
inline void TransposeBf16(const uint16_t* const src[16], int64_t dims, float* dst) {
  for (int64_t d = 0; d < dims; ++d) {
    for (int i = 0; i < 16; ++i) {
      dst[d * 16 + i] = FloatOf(static_cast<uint32_t>(src[i][d]) << 16);
    }
  }
}
inline void TransposeF32(const float* const src[16], int64_t dims, float* dst) {
  for (int64_t d = 0; d < dims; ++d) {
    for (int i = 0; i < 16; ++i) dst[d * 16 + i] = src[i][d];
  }
}

// Rows and panels of the GEMM micro-kernel that fit this variant's registers.
inline constexpr int kTileRows = 4;
inline constexpr int kTilePanels = 1;

}  // namespace
}  // namespace kvstore::kernels
