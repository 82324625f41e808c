// bf16 products of many rows where the machine has no bf16 instructions: a panel of the weight is widened to float
// and packed once, then every block of rows of x runs over it. Float products of many rows are torch's own affair.
#pragma once
#include "simd.h"
#include "table.h"

namespace SRR_NS {

using srr::Gemm;

constexpr int64_t KC = 256;  // depth of a panel: KC x PAIR floats stay in the nearest cache
constexpr int MR = 6;        // rows of x at once: 12 sums, 2 weights and 1 value fill the 16 registers of AVX2

// Eight rows of sixteen bf16 to floats [16][8], as pairs of elements: three rounds of exchanges.
#if SRR_BYTES >= 32
typedef uint32_t u8x __attribute__((vector_size(32)));
typedef uint32_t u8x_any __attribute__((vector_size(32), aligned(2), may_alias));
typedef int32_t i8x __attribute__((vector_size(32)));
#if defined(__clang__)
#define SRR_SHUFFLE8(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SRR_SHUFFLE8(a, b, ...) __builtin_shuffle(a, b, i8x{__VA_ARGS__})
#endif

static inline void transpose16(const bf16* const* row, int64_t k, float* out, int64_t ld) {
  u8x r[8], t[8];
  for (int i = 0; i < 8; ++i) r[i] = *reinterpret_cast<const u8x_any*>(row[i] + k);
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = SRR_SHUFFLE8(r[2 * i], r[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    t[2 * i + 1] = SRR_SHUFFLE8(r[2 * i], r[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = SRR_SHUFFLE8(t[i + j], t[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      r[i + 2 * j + 1] = SRR_SHUFFLE8(t[i + j], t[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (int j = 0; j < 4; ++j) {
    t[j] = SRR_SHUFFLE8(r[j], r[j + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    t[j + 4] = SRR_SHUFFLE8(r[j], r[j + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  for (int j = 0; j < 8; ++j) {
    u8x even = t[j] << 16, odd = t[j] & 0xffff0000u;
    memcpy(out + 2 * j * ld, &even, 32);
    memcpy(out + (2 * j + 1) * ld, &odd, 32);
  }
}
#endif

// Rows n..n+PAIR of a row-major weight (those past the end as zeros), columns k..k+depth -> panel [depth][PAIR].
static void pack_rows(const Gemm& g, int64_t n, int64_t k, int64_t depth, float* panel) {
  const bf16* w = static_cast<const bf16*>(g.w);
  int i = 0;
#if SRR_BYTES >= 32
  const int64_t whole = depth - depth % 16;
  for (; i + 8 <= PAIR && n + i + 8 <= g.n; i += 8) {
    const bf16* row[8];
    for (int j = 0; j < 8; ++j) row[j] = w + (n + i + j) * g.ldw + k;
    for (int64_t d = 0; d < whole; d += 16) transpose16(row, d, panel + d * PAIR + i, PAIR);
    for (int j = 0; j < 8; ++j)
      for (int64_t d = whole; d < depth; ++d) panel[d * PAIR + i + j] = widen(row[j][d]);
  }
#endif
  for (; i < PAIR; ++i)
    for (int64_t d = 0; d < depth; ++d)
      panel[d * PAIR + i] = n + i < g.n ? widen(w[(n + i) * g.ldw + k + d]) : 0.0f;
}

static void pack_columns(const Gemm& g, int64_t n, int64_t k, int64_t depth, float* panel) {
  const bf16* w = static_cast<const bf16*>(g.w) + n;
  for (int64_t d = 0; d < depth; ++d) {
    const bf16* row = w + (k + d) * g.ldw;
    Two v = n + PAIR <= g.n ? load_pair(row) : load_part(row, g.n - n);
    v = interleave(v.a, v.b);
    store(panel + d * PAIR, v.a);
    store(panel + d * PAIR + W, v.b);
  }
}

template <int R>
static inline void micro(const float* x, int64_t ldx, const float* panel, int64_t depth, float* c, bool fresh) {
  vf a[R], b[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    a[r] = fresh ? vf{} : load(c + r * PAIR);
    b[r] = fresh ? vf{} : load(c + r * PAIR + W);
  }
  for (int64_t d = 0; d < depth; ++d) {
    const vf w0 = load(panel + d * PAIR), w1 = load(panel + d * PAIR + W);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const vf k = splat(x[r * ldx + d]);
      a[r] += w0 * k;
      b[r] += w1 * k;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    store(c + r * PAIR, a[r]);
    store(c + r * PAIR + W, b[r]);
  }
}

static int64_t gemm_scratch(int64_t m) { return (KC + m) * PAIR; }

// Columns begin..end of the result, begin a multiple of PAIR; scratch: gemm_scratch(m) floats.
static void gemm(const Gemm& g, float* scratch, int64_t begin, int64_t end) {
  float *panel = scratch, *sums = scratch + KC * PAIR;
  bf16* out = static_cast<bf16*>(g.out);
  const bf16* bias = static_cast<const bf16*>(g.bias);
  for (int64_t n = begin; n < end; n += PAIR) {
    for (int64_t k = 0; k < g.k; k += KC) {
      const int64_t depth = least(KC, g.k - k);
      if (g.input_major)
        pack_columns(g, n, k, depth, panel);
      else
        pack_rows(g, n, k, depth, panel);
      for (int64_t m = 0; m < g.m; m += MR) {
        const float* x = g.x + m * g.k + k;
        float* c = sums + m * PAIR;
        switch (least(int64_t(MR), g.m - m)) {
          case 1: micro<1>(x, g.k, panel, depth, c, k == 0); break;
          case 2: micro<2>(x, g.k, panel, depth, c, k == 0); break;
          case 3: micro<3>(x, g.k, panel, depth, c, k == 0); break;
          case 4: micro<4>(x, g.k, panel, depth, c, k == 0); break;
          case 5: micro<5>(x, g.k, panel, depth, c, k == 0); break;
          default: micro<MR>(x, g.k, panel, depth, c, k == 0);
        }
      }
    }
    const int64_t width = least(int64_t(PAIR), g.n - n);
    for (int64_t m = 0; m < g.m; ++m)
      for (int64_t i = 0; i < width; ++i)
        narrow(sums[m * PAIR + i] + (bias ? widen(bias[n + i]) : 0.0f), out + m * g.ldo + n + i);
  }
}

}  // namespace SRR_NS
