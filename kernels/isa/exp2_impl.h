// 2^x, on the Vec16 of the including variant. Within 2 ulp of the exact value; exactly 1 at 0;
// below 2^-126 it is 0 (so -infinity gives 0), from 2^128 on infinity; NaN stays NaN.
#pragma once

namespace kvstore::kernels {
namespace {

// Polynomial of 2^f for f in [-1/2, 1/2]: the Taylor series, ln(2)^i / i!, whose remainder is below
// 6e-9 there.
inline Vec16 Exp2(const Vec16& x) {
  const Vec16 magic =
      Set(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  const Vec16 clamped = Min(Set(128.0f), Max(Set(-127.0f), x));  // in this order NaN passes
  const Vec16 rounded = Add(clamped, magic);
  const Vec16 f = Sub(clamped, Sub(rounded, magic));
  Vec16 p = Set(1.52527338e-5f);
  p = Fma(p, f, Set(1.54035304e-4f));
  p = Fma(p, f, Set(1.33335581e-3f));
  p = Fma(p, f, Set(9.61812911e-3f));
  p = Fma(p, f, Set(5.55041087e-2f));
  p = Fma(p, f, Set(2.40226507e-1f));
  p = Fma(p, f, Set(6.93147181e-1f));
  p = Fma(p, f, Set(1.0f));
  return Mul(p, Pow2OfMagic(rounded));
}

inline float Exp2(float x) {
  float lanes[16];
  Store(lanes, Exp2(Set(x)));
  return lanes[0];
}

}  // namespace
}  // namespace kvstore::kernels
