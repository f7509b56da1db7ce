// Vec16 for AVX-512 (F, BW, DQ, VL): one 512-bit register. Contract: vec16_scalar.h.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "kernels/isa/transpose_avx2.h"

namespace kvstore::kernels {
namespace {

struct Vec16 {
  __m512 v;
};

inline __mmask16 FirstLanes(int64_t n) {
  return n >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << n) - 1u);
}

inline Vec16 Set(float x) { return {_mm512_set1_ps(x)}; }
inline Vec16 Zero() { return {_mm512_setzero_ps()}; }
inline Vec16 Load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void Store(float* p, const Vec16& x) { _mm512_storeu_ps(p, x.v); }
inline Vec16 LoadN(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(FirstLanes(n), p)}; }
inline void StoreN(float* p, const Vec16& x, int64_t n) {
  _mm512_mask_storeu_ps(p, FirstLanes(n), x.v);
}

inline Vec16 LoadBf16(const uint16_t* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
}
inline void StoreBf16N(uint16_t* p, const Vec16& x, int64_t n) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  const __m512i out = _mm512_mask_or_epi32(rounded, is_nan, high, _mm512_set1_epi32(0x40));
  _mm256_mask_storeu_epi16(p, FirstLanes(n), _mm512_cvtepi32_epi16(out));
}

inline Vec16 Add(const Vec16& a, const Vec16& b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec16 Sub(const Vec16& a, const Vec16& b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec16 Mul(const Vec16& a, const Vec16& b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec16 Div(const Vec16& a, const Vec16& b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec16 Max(const Vec16& a, const Vec16& b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec16 Min(const Vec16& a, const Vec16& b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec16 Fma(const Vec16& a, const Vec16& b, const Vec16& c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline Vec16 Sqrt(const Vec16& a) { return {_mm512_sqrt_ps(a.v)}; }

inline Vec16 Pow2OfMagic(const Vec16& magic) {
  const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(magic.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 23))};
}

inline float ReduceAdd(const Vec16& x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
inline float ReduceMax(const Vec16& x) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// 12 rows x 2 panels: 24 accumulators of the 32 registers.
inline constexpr int kTileRows = 12;
inline constexpr int kTilePanels = 2;

}  // namespace
}  // namespace kvstore::kernels
