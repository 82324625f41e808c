// exp, tanh, erf on vectors, to about one unit in the last place (erf to 1.1).
// exp and tanh: coefficients of Cephes (S. Moshier, expf.c, tanhf.c). erf: Chebyshev fits of our own.
#pragma once
#include "simd.h"

namespace SRR_NS {

template <int N>
static inline vf horner(const float (&c)[N], vf x) {
  vf p = splat(c[0]);
#pragma GCC unroll 16
  for (int i = 1; i < N; ++i) p = p * x + splat(c[i]);
  return p;
}

// e^x: range reduction by ln 2 in two parts, and the power of two in two steps, so that results below the normal
// range are right too. Overflow gives infinity, NaN stays NaN.
static inline vf vexp(vf x) {
  constexpr float c[] = {1.98756912e-4f, 1.39819994e-3f, 8.33345205e-3f, 4.16657962e-2f, 1.66666657e-1f, 5.0e-1f};
  vf clamped = blend(x < splat(-104.0f), splat(-104.0f), x);
  clamped = blend(clamped > splat(89.0f), splat(89.0f), clamped);
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  vf shifted = clamped * splat(1.44269504088896341f) + magic;
  vf n = shifted - magic;
  vf r = clamped - n * splat(0.693359375f);
  r = r - n * splat(-2.12194440e-4f);
  vf p = (horner(c, r) * r) * r + r + splat(1.0f);
  vi exponent = (vi)shifted - 0x4b400000;
  vi half = exponent >> 1;
  vi low = (half + 127) << 23, high = (exponent - half + 127) << 23;
  vf y = p * (vf)low * (vf)high;
  return blend(x == x, y, x);
}

static inline vf sigmoid(vf x) { return splat(1.0f) / (splat(1.0f) + vexp(-x)); }

static inline vf with_sign_of(vf magnitude, vf x) {
  return as_float(as_bits(magnitude) | (as_bits(x) & 0x80000000u));
}

// tanh x: an odd polynomial near zero (where the quotient would cancel), 1 - 2 / (e^2|x| + 1) beyond.
static inline vf vtanh(vf x) {
  constexpr float c[] = {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                         -3.33332819422e-1f};
  vf a = vabs(x), s = x * x;
  vf small = horner(c, s) * s * x + x;
  vf big = splat(1.0f) - splat(2.0f) / (vexp(a + a) + splat(1.0f));
  return blend(a < splat(0.625f), small, with_sign_of(big, x));
}

// erf x: x + x * q(x^2) below 1, 1 - exp(p(|x|)) beyond, where p fits log erfc.
static inline vf verf(vf x) {
  constexpr float near[] = {-9.67359028e-06f, 0.000112682537f, -0.000848439639f, 0.00522105349f,
      -0.0268654376f, 0.112837829f, -0.376126379f, 0.128379166f};
  constexpr float far[] = {1.61504499e-06f, -4.56110211e-05f, 0.000592950557f, -0.00474111782f,
      0.0263674147f, -0.109983303f, -0.631931365f, -1.13017035f, 0.000304176763f};
  vf a = vabs(x), s = x * x;
  vf small = horner(near, s) * x + x;
  vf bounded = blend(a > splat(4.0f), splat(4.0f), a);
  vf big = splat(1.0f) - vexp(horner(far, bounded));
  return blend(a < splat(1.0f), small, with_sign_of(big, x));
}

// The numbers are those of `activation_code` in the bindings. T is the dtype whose rounding eager's steps have.
enum Act { SILU, GELU, GELU_TANH, RELU, RELU2, QUICK_GELU, SIGMOID, TANH };

template <class T>
static inline vf activate(Act act, vf x) {
  const T* t = nullptr;
  switch (act) {
    case SILU:
      return round_to(x / (splat(1.0f) + vexp(-x)), t);
    case GELU:
      return round_to(splat(0.5f) * x * (splat(1.0f) + verf(x * splat(0.70710678118654752f))), t);
    case GELU_TANH: {
      vf inner = splat(0.79788456080286536f) * (x + splat(0.044715f) * x * x * x);
      return round_to(splat(0.5f) * x * (splat(1.0f) + vtanh(inner)), t);
    }
    case RELU:
      return blend(x < vf{}, vf{}, x);
    case RELU2: {
      vf r = blend(x < vf{}, vf{}, x);
      return round_to(r * r, t);
    }
    case QUICK_GELU:
      return round_to(x * round_to(sigmoid(round_to(splat(1.702f) * x, t)), t), t);
    case SIGMOID:
      return round_to(sigmoid(x), t);
    case TANH:
      return round_to(vtanh(x), t);
  }
  return x;
}

}  // namespace SRR_NS
