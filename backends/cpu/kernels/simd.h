// Vectors of floats, one width per instruction set. A translation unit is compiled once for each set, with
// SRR_NS (a namespace of its own, so that the linker never mixes two sets) and SRR_BYTES (the vector's width).
// Only the compiler's vector extensions are used: gcc and clang turn them into SSE, AVX2, AVX-512 or NEON, and every
// width can be tested on any machine. No standard library templates in here: their instances would be shared.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace SRR_NS {

constexpr int W = SRR_BYTES / 4;  // floats in a vector
constexpr int PAIR = 2 * W;       // elements in the unit that all kernels step by

typedef float vf __attribute__((vector_size(SRR_BYTES)));
typedef int32_t vi __attribute__((vector_size(SRR_BYTES)));
typedef uint32_t vu __attribute__((vector_size(SRR_BYTES)));
typedef float vf_any __attribute__((vector_size(SRR_BYTES), aligned(4), may_alias));
typedef uint32_t vu_any __attribute__((vector_size(SRR_BYTES), aligned(2), may_alias));

struct bf16 {
  uint16_t bits;
};
struct i8 {
  int8_t value;
};

static inline vf splat(float x) { return x - vf{}; }
static inline vf load(const float* p) { return *reinterpret_cast<const vf_any*>(p); }
static inline void store(float* p, vf v) { *reinterpret_cast<vf_any*>(p) = v; }
static inline vf as_float(vu v) { return (vf)v; }
static inline vu as_bits(vf v) { return (vu)v; }
static inline vf blend(vi mask, vf yes, vf no) { return mask ? yes : no; }
static inline vf vabs(vf v) { return as_float(as_bits(v) & 0x7fffffffu); }

static inline float widen(float x) { return x; }
static inline float widen(bf16 x) {
  uint32_t u = uint32_t(x.bits) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

// PAIR successive weights as two vectors. float: the first and the second half. bf16: the even and the odd ones,
// which costs a shift and a mask; whatever is multiplied with them is laid out alike ("pair order").
struct Two {
  vf a, b;
};
static inline Two load_pair(const float* p) { return {load(p), load(p + W)}; }
static inline Two load_pair(const bf16* p) {
  vu v = *reinterpret_cast<const vu_any*>(p);
  return {as_float(v << 16), as_float(v & 0xffff0000u)};
}

// int8, in natural order. Only here intrinsics: gcc makes a dozen instructions of the generic conversion.
static inline vf widen_some(const i8* p) {
#if SRR_BYTES == 64 && defined(__AVX512F__)
  return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif SRR_BYTES == 32 && defined(__AVX2__)
  return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  vi v;
  for (int j = 0; j < W; ++j) v[j] = p[j].value;
  return __builtin_convertvector(v, vf);
#endif
}
static inline Two load_pair(const i8* p) { return {widen_some(p), widen_some(p + W)}; }
static inline float widen(i8 x) { return x.value; }

// Fewer than PAIR weights, zeros after them.
template <class T>
static inline Two load_part(const T* p, int64_t count) {
  T buffer[PAIR] = {};
  memcpy(buffer, p, size_t(count) * sizeof(T));
  return load_pair(buffer);
}

#if defined(__clang__)
#define SRR_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SRR_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, vi{__VA_ARGS__})
#endif

// Pair order back to natural order: a holds the even elements, b the odd ones.
static inline Two interleave(vf a, vf b) {
#if SRR_BYTES == 16
  return {SRR_SHUFFLE(a, b, 0, 4, 1, 5), SRR_SHUFFLE(a, b, 2, 6, 3, 7)};
#elif SRR_BYTES == 32
  return {SRR_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11), SRR_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)};
#elif SRR_BYTES == 64
  return {SRR_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
          SRR_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)};
#endif
}
static inline Two to_natural(Two p, const float*) { return p; }
static inline Two to_natural(Two p, const i8*) { return p; }
static inline Two to_natural(Two p, const bf16*) { return interleave(p.a, p.b); }

// Natural to pair order.
static inline Two deinterleave(vf a, vf b) {
#if SRR_BYTES == 16
  return {SRR_SHUFFLE(a, b, 0, 2, 4, 6), SRR_SHUFFLE(a, b, 1, 3, 5, 7)};
#elif SRR_BYTES == 32
  return {SRR_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14), SRR_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15)};
#elif SRR_BYTES == 64
  return {SRR_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
          SRR_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)};
#endif
}
static inline Two to_pair(Two p, const float*) { return p; }
static inline Two to_pair(Two p, const bf16*) { return deinterleave(p.a, p.b); }

// Sums of vectors, pairwise; four at once cost little more than one.
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));
#if defined(__clang__)
#define SRR_SHUFFLE4(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SRR_SHUFFLE4(a, b, ...) __builtin_shuffle(a, b, i4{__VA_ARGS__})
#endif
static inline v4 fold(vf v) {
  v4 part[SRR_BYTES / 16];
  memcpy(part, &v, SRR_BYTES);
#if SRR_BYTES == 64
  part[0] += part[2];
  part[1] += part[3];
#endif
#if SRR_BYTES >= 32
  part[0] += part[1];
#endif
  return part[0];
}
static inline v4 sum4(vf a, vf b, vf c, vf d) {
  const v4 p = fold(a), q = fold(b), r = fold(c), s = fold(d);
  const v4 pq = SRR_SHUFFLE4(p, q, 0, 4, 1, 5) + SRR_SHUFFLE4(p, q, 2, 6, 3, 7);
  const v4 rs = SRR_SHUFFLE4(r, s, 0, 4, 1, 5) + SRR_SHUFFLE4(r, s, 2, 6, 3, 7);
  return SRR_SHUFFLE4(pq, rs, 0, 1, 4, 5) + SRR_SHUFFLE4(pq, rs, 2, 3, 6, 7);
}
static inline float sum(vf v) {
  const v4 p = fold(v);
  return (p[0] + p[2]) + (p[1] + p[3]);
}

// Round to bfloat16, nearest even, as a float: what storing and reading back would give.
static inline vf round_bf16(vf v) {
  vu u = as_bits(v);
  vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u;
  return blend(v == v, as_float(rounded), as_float(u | 0x00400000u));
}
static inline vf round_to(vf v, const float*) { return v; }
static inline vf round_to(vf v, const bf16*) { return round_bf16(v); }

static inline uint16_t to_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  if (x != x) return uint16_t((u >> 16) | 0x40);
  return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static inline void narrow(float x, float* out) { *out = x; }
static inline void narrow(float x, bf16* out) { out->bits = to_bf16(x); }

template <class N>
static inline N least(N a, N b) {
  return b < a ? b : a;
}

}  // namespace SRR_NS
