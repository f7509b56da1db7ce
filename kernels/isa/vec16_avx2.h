// Vec16 for AVX2 with FMA: two 256-bit registers. Contract: vec16_scalar.h.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "kernels/isa/transpose_avx2.h"

namespace kvstore::kernels {
namespace {

struct Vec16 {
  __m256 lo;
  __m256 hi;
};

inline Vec16 Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vec16 Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Vec16 Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void Store(float* p, const Vec16& x) {
  _mm256_storeu_ps(p, x.lo);
  _mm256_storeu_ps(p + 8, x.hi);
}
inline Vec16 LoadN(const float* p, int64_t n) {
  if (n >= 16) return Load(p);
  alignas(32) float lanes[16] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return Load(lanes);
}
inline void StoreN(float* p, const Vec16& x, int64_t n) {
  if (n >= 16) return Store(p, x);
  alignas(32) float lanes[16];
  Store(lanes, x);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

inline Vec16 LoadBf16(const uint16_t* p) {
  return {WidenBf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          WidenBf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline __m256i NarrowBf16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i nan = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  const __m256 is_nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  return _mm256_blendv_epi8(rounded, nan, _mm256_castps_si256(is_nan));
}
inline void StoreBf16N(uint16_t* p, const Vec16& x, int64_t n) {
  const __m256i packed = _mm256_permute4x64_epi64(
      _mm256_packus_epi32(NarrowBf16(x.lo), NarrowBf16(x.hi)), _MM_SHUFFLE(3, 1, 2, 0));
  if (n >= 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
    return;
  }
  alignas(32) uint16_t lanes[16];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), packed);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

inline Vec16 Add(const Vec16& a, const Vec16& b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline Vec16 Sub(const Vec16& a, const Vec16& b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline Vec16 Mul(const Vec16& a, const Vec16& b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline Vec16 Div(const Vec16& a, const Vec16& b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline Vec16 Max(const Vec16& a, const Vec16& b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline Vec16 Min(const Vec16& a, const Vec16& b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
inline Vec16 Fma(const Vec16& a, const Vec16& b, const Vec16& c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Vec16 Sqrt(const Vec16& a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }

inline __m256 Pow2OfMagic8(__m256 magic) {
  const __m256i bits = _mm256_add_epi32(_mm256_castps_si256(magic), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23));
}
inline Vec16 Pow2OfMagic(const Vec16& magic) {
  return {Pow2OfMagic8(magic.lo), Pow2OfMagic8(magic.hi)};
}

inline float ReduceAdd(const Vec16& x) {
  const __m256 eight = _mm256_add_ps(x.lo, x.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline float ReduceMax(const Vec16& x) {
  const __m256 eight = _mm256_max_ps(x.lo, x.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// 6 rows x 2 registers of accumulators, 2 of weights and 1 broadcast: 15 of the 16 registers.
inline constexpr int kTileRows = 6;
inline constexpr int kTilePanels = 1;

}  // namespace
}  // namespace kvstore::kernels
