// Products of a few rows with a weight that is read once, in either layout. Memory is all that counts here:
// a core draws more from it over several far-apart streams than over one, so a range of rows is cut in parts that
// are walked side by side (measured on Zen 3: 1.3 to 1.45 times one stream). Where rows are skipped the hardware cannot
// guess the next one, and prefetching it pays.
#pragma once
#include "simd.h"
#include "table.h"

namespace SRR_NS {

using srr::Axpy;
using srr::Dot;

template <class T>
static inline void ask_for_pair(const T* p) {
  for (size_t line = 0; line < PAIR * sizeof(T); line += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(p) + line, 0, 2);
}

// Where the hardware runs ahead by itself, it does so better when each stream's lines are asked for a kilobyte early:
// on Zen 4 4 to 11% over a row-major weight, up to 24% over an input-major one (half a kilobyte and two are worse).
// Zen 3 did best without.
constexpr size_t LEAD = SRR_BYTES == 64 ? 1024 : 0;

template <class T>
static inline void ask_ahead(const T* p) {
  if (LEAD) ask_for_pair(reinterpret_cast<const T*>(reinterpret_cast<const char*>(p) + LEAD));
}

constexpr int BLOCK = 256 / PAIR;  // steps after which a dot product's partial sums are put aside: it bounds rounding

// S rows of w (streams) times M rows of x; A sums for each, 2 where there are registers to spare. The order of the
// loops keeps the sums, one half pair of each stream and one vector of x in the 16 registers of AVX2.
template <class T, int M, int S, bool AHEAD>
static inline void dot_streams(const T* const* w, const T* const* next, const Dot& d, int m0, float (&out)[S][M]) {
  constexpr int A = M * S <= 4 ? 2 : 1;
  const float* x = d.x + m0 * d.ldx;
  const int64_t steps = d.k / PAIR;
  vf total[S * M];
  for (int64_t step = 0; step < steps || step == 0;) {
    vf acc[S][M][A] = {};
    const int64_t stop = least(steps, step + BLOCK);
    const bool first = step == 0;
    for (; step < stop; ++step) {
      const int64_t k = step * PAIR;
      Two v[S];
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) {
        v[s] = load_pair(w[s] + k);
        if (AHEAD)
          ask_for_pair(next[s] + k);
        else
          ask_ahead(w[s] + k);
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const vf xm = load(x + m * d.ldx + k);
#pragma GCC unroll 8
        for (int s = 0; s < S; ++s) acc[s][m][0] += v[s].a * xm;
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const vf xm = load(x + m * d.ldx + k + W);
#pragma GCC unroll 8
        for (int s = 0; s < S; ++s) acc[s][m][A - 1] += v[s].b * xm;
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < S * M; ++i) {
      const vf(&a)[A] = acc[i / M][i % M];
      const vf both = A == 2 ? a[0] + a[A - 1] : a[0];
      total[i] = first ? both : total[i] + both;
    }
    if (steps == 0) break;
  }
  const int64_t k = steps * PAIR;
  if (k < d.k) {
#pragma GCC unroll 16
    for (int i = 0; i < S * M; ++i) {
      const float* xm = x + i % M * d.ldx + k;
      const Two v = load_part(w[i / M] + k, d.k - k);
      total[i] += v.a * load(xm) + v.b * load(xm + W);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i + 4 <= S * M; i += 4) {
    const v4 four = sum4(total[i], total[i + 1], total[i + 2], total[i + 3]);
    memcpy(&out[0][0] + i, &four, sizeof four);
  }
#pragma GCC unroll 4
  for (int i = S * M / 4 * 4; i < S * M; ++i) out[i / M][i % M] = sum(total[i]);
}

template <class T, int M, int S>
static inline void dot_write(const T* const* w, const T* const* next, const Dot& d, int m0, const int64_t* at) {
  float y[S][M];
  if (next && m0 == 0)
    dot_streams<T, M, S, true>(w, next, d, m0, y);
  else
    dot_streams<T, M, S, false>(w, next, d, m0, y);
  for (int s = 0; s < S; ++s)
    for (int m = 0; m < M; ++m) d.out[(m0 + m) * d.ldo + at[s]] = y[s][m];
}

template <class T, int S>
static void dot_range(const Dot& d, int64_t begin, int64_t count) {
  const T* base = static_cast<const T*>(d.w);
  const int64_t each = count / S;
  for (int64_t i = 0; i < each; ++i) {
    const T *w[S], *next[S];
    int64_t at[S];
    for (int s = 0; s < S; ++s) {
      const int64_t place = begin + s * each + i;
      const int64_t row = d.list ? d.list[place] : place;
      w[s] = base + row * d.ldw;
      next[s] = base + (d.list && i + 1 < each ? d.list[place + 1] : row) * d.ldw;
      at[s] = d.scatter ? row : place;
    }
    const T* const* ahead = d.list ? next : nullptr;
    // More than four rows of x: again over the same rows of w, which are in the nearest cache by then.
    for (int m = 0; m < d.rows; m += 4) switch (least(4, d.rows - m)) {
        case 1: dot_write<T, 1, S>(w, ahead, d, m, at); break;
        case 2: dot_write<T, 2, S>(w, ahead, d, m, at); break;
        case 3: dot_write<T, 3, S>(w, ahead, d, m, at); break;
        default: dot_write<T, 4, S>(w, ahead, d, m, at);
      }
  }
}

template <class T>
static void dot(const Dot& d, int64_t begin, int64_t end) {
  const int64_t count = end - begin, tail = d.rows <= 2 ? count % 4 : count % 2;
  if (d.rows <= 2)
    dot_range<T, 4>(d, begin, count - tail);
  else
    dot_range<T, 2>(d, begin, count - tail);
  dot_range<T, 1>(d, end - tail, tail);
}

// G rows of w times their coefficients, for TP pairs of columns: stored, or added to what is there.
template <class T, int M, int G, int TP>
static inline void axpy_tile(const T* const* r, const T* const* next, const float (*c)[G], float* into, int64_t ld,
                             bool fresh) {
  vf a[M][TP], b[M][TP];
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
    for (int t = 0; t < TP; ++t) {
      if (next)
        ask_for_pair(next[g] + t * PAIR);
      else
        ask_ahead(r[g] + t * PAIR);
      Two v = load_pair(r[g] + t * PAIR);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const vf k = splat(c[m][g]);
        a[m][t] = g == 0 ? v.a * k : a[m][t] + v.a * k;
        b[m][t] = g == 0 ? v.b * k : b[m][t] + v.b * k;
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int t = 0; t < TP; ++t) {
      float* y = into + m * ld + t * PAIR;
      store(y, fresh ? a[m][t] : load(y) + a[m][t]);
      store(y + W, fresh ? b[m][t] : load(y + W) + b[m][t]);
    }
}

// Streams of rows walked side by side; more of them hide the time to the first line of a row that nothing could
// guess, where one row of x wants few rows of w.
constexpr int STREAMS = 6, LONE_STREAMS = 12;

struct Columns {
  int64_t begin, pairs;  // whole pairs of columns, from `begin`
  int64_t tail;          // the columns after them, read as one pair that ends where they end
};

// places: where in the list the G rows stand; ahead: the rows after them, to be prefetched, or null.
template <class T, int M, int G>
static void axpy_group(const Axpy& a, const Columns& c, int m0, const int64_t* places, const int64_t* ahead,
                       float* into, bool fresh) {
  constexpr int TP = M <= 2 && PAIR * sizeof(T) < 64 ? 2 : 1;  // a line of each row at a time
  const T* base = static_cast<const T*>(a.w) + c.begin;
  const T *r[G], *next[G];
  float coef[M][G];
  for (int g = 0; g < G; ++g) {
    r[g] = base + (a.list ? a.list[places[g]] : places[g]) * a.ldw;
    if (ahead) next[g] = base + a.list[ahead[g]] * a.ldw;
    for (int m = 0; m < M; ++m) coef[m][g] = a.coef[(m0 + m) * a.ldc + places[g]];
  }
  const T* const* n = ahead ? next : nullptr;
  float* y = into + m0 * a.ldo + c.begin;
  const auto advance = [&](int64_t by) {
    for (int g = 0; g < G; ++g) {
      r[g] += by;
      if (ahead) next[g] += by;
    }
  };
  int64_t p = 0;
  for (; p + TP <= c.pairs; p += TP, advance(TP * PAIR))
    axpy_tile<T, M, G, TP>(r, n, coef, y + p * PAIR, a.ldo, fresh);
  for (; p < c.pairs; ++p, advance(PAIR)) axpy_tile<T, M, G, 1>(r, n, coef, y + p * PAIR, a.ldo, fresh);
  if (c.tail) {
    advance(c.tail - PAIR);
    axpy_tile<T, M, G, 1>(r, n, coef, y + p * PAIR, a.ldo, fresh);
  }
}

template <class T, int G>
static void axpy_rows(const Axpy& a, const Columns& c, const int64_t* places, const int64_t* ahead, float* into,
                      bool fresh) {
  if constexpr (G == LONE_STREAMS)
    axpy_group<T, 1, G>(a, c, 0, places, ahead, into, fresh);
  else
    for (int m = 0; m < a.rows; m += 4) switch (least(4, a.rows - m)) {
        case 1: axpy_group<T, 1, G>(a, c, m, places, ahead, into, fresh); break;
        case 2: axpy_group<T, 2, G>(a, c, m, places, ahead, into, fresh); break;
        case 3: axpy_group<T, 3, G>(a, c, m, places, ahead, into, fresh); break;
        default: axpy_group<T, 4, G>(a, c, m, places, ahead, into, fresh);
      }
}

// Float weights: sums of GROUPS groups are put aside in `part` and added up, which bounds rounding as eager's
// blocked products do. With bf16 weights the result's own rounding hides it, and `out` is summed into directly.
constexpr int GROUPS = 8;

template <class T>
struct Sums {
  const Axpy& a;
  const Columns& c;
  bool started = false;
  int held = 0;

  float* into() const { return sizeof(T) == 4 ? a.part : a.out; }
  bool fresh() const { return sizeof(T) == 4 ? held == 0 : !started; }
  void added() {
    ++held;
    if (sizeof(T) == 4 && held == GROUPS) flush();
    started = true;
  }
  void flush() {
    if (sizeof(T) != 4 || held == 0) return;
    const int64_t n = (c.pairs + (c.tail ? 1 : 0)) * PAIR;
    const bool first = !moved;
    for (int m = 0; m < a.rows; ++m)
      for (int64_t i = 0; i < n; i += W) {
        const int64_t at = m * a.ldo + c.begin + i;
        store(a.out + at, first ? load(a.part + at) : load(a.out + at) + load(a.part + at));
      }
    moved = true;
    held = 0;
  }
  bool moved = false;
};

template <class T, int G>
static void axpy_streams(const Axpy& a, const Columns& c, Sums<T>& sums, int64_t begin, int64_t count) {
  const int64_t each = count / G;
  // Along a long row the hardware runs ahead by itself, and does it better.
  const bool prefetch = a.list && (c.pairs * PAIR + c.tail) * int64_t(sizeof(T)) < 4096;
  int64_t places[G], ahead[G];
  for (int64_t i = 0; i < each; ++i) {
    for (int g = 0; g < G; ++g) {
      places[g] = begin + g * each + i;
      ahead[g] = least(places[g] + 1, a.count - 1);
    }
    axpy_rows<T, G>(a, c, places, prefetch ? ahead : nullptr, sums.into(), sums.fresh());
    sums.added();
  }
}

// All rows for one block of columns, and its sums from pair order back to natural order.
template <class T>
static void axpy_block(const Axpy& a, const Columns& c) {
  Sums<T> sums{a, c};
  const bool lone = a.list && a.rows == 1;
  const int64_t most = a.count - a.count % (lone ? LONE_STREAMS : STREAMS), fours = most + (a.count - most) / 4 * 4;
  if (lone)
    axpy_streams<T, LONE_STREAMS>(a, c, sums, 0, most);
  else
    axpy_streams<T, STREAMS>(a, c, sums, 0, most);
  axpy_streams<T, 4>(a, c, sums, most, fours - most);
  axpy_streams<T, 1>(a, c, sums, fours, a.count - fours);
  sums.flush();
  const T* t = nullptr;
  for (int m = 0; m < a.rows; ++m) {
    float* y = a.out + m * a.ldo + c.begin;
    if (a.count == 0) memset(y, 0, size_t(c.pairs * PAIR + c.tail) * sizeof(float));
    if (a.count == 0) continue;
    for (int64_t p = 0; p < c.pairs + (c.tail ? 1 : 0); ++p) {
      Two v = to_natural({load(y + p * PAIR), load(y + p * PAIR + W)}, t);
      store(y + p * PAIR, v.a);
      store(y + p * PAIR + W, v.b);
    }
    if (c.tail) memmove(y + c.pairs * PAIR, y + (c.pairs + 1) * PAIR - c.tail, size_t(c.tail) * sizeof(float));
  }
}

// A weight of fewer columns than a pair.
template <class T>
static void axpy_narrow(const Axpy& a) {
  for (int m = 0; m < a.rows; ++m)
    for (int64_t n = 0; n < a.n; ++n) {
      float total = 0;
      for (int64_t i = 0; i < a.count; ++i)
        total += a.coef[m * a.ldc + i] * widen(static_cast<const T*>(a.w)[(a.list ? a.list[i] : i) * a.ldw + n]);
      a.out[m * a.ldo + n] = total;
    }
}

template <class T>
static void axpy(const Axpy& a, int64_t begin, int64_t end) {
  if (a.n < PAIR) return axpy_narrow<T>(a);
  // The sums of a block stay in the nearest cache while the rows stream past.
  const int64_t block = 6144 / a.rows / 64 * 64;
  for (int64_t at = begin; at < end; at += block) {
    const int64_t width = least(block, end - at);
    axpy_block<T>(a, {at, width / PAIR, width % PAIR});
  }
}

}  // namespace SRR_NS
