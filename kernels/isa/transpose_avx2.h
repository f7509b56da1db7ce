// Widening and transposition in 8 x 8 pieces, for the variants that have AVX2. Moves only: no
// rounding.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace kvstore::kernels {
namespace {

inline __m256 WidenBf16(__m128i x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
// Transposes the 8 x 8 floats in `r` and stores row d at dst + 16 * d.
inline void Transpose8x8(const __m256 r[8], float* dst) {
  __m256 t[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  __m256 u[8];
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(dst + 16 * i, _mm256_permute2f128_ps(u[i], u[i + 4], 0x20));
    _mm256_storeu_ps(dst + 16 * (i + 4), _mm256_permute2f128_ps(u[i], u[i + 4], 0x31));
  }
}
inline void TransposeBf16(const uint16_t* const src[16], int64_t dims, float* dst) {
  for (int half = 0; half < 16; half += 8) {
    for (int64_t d = 0; d < dims; d += 8) {
      __m256 r[8];
      for (int i = 0; i < 8; ++i) {
        r[i] = WidenBf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src[half + i] + d)));
      }
      Transpose8x8(r, dst + d * 16 + half);
    }
  }
}
inline void TransposeF32(const float* const src[16], int64_t dims, float* dst) {
  for (int half = 0; half < 16; half += 8) {
    for (int64_t d = 0; d < dims; d += 8) {
      __m256 r[8];
      for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(src[half + i] + d);
      Transpose8x8(r, dst + d * 16 + half);
    }
  }
}

}  // namespace
}  // namespace kvstore::kernels
