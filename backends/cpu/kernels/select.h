// The best of many values, by counting: a float's bits, folded, are an integer of the same order, and the bits of
// the last value that stays are found one by one. A sample says first which few values can be among the best.
#pragma once
#include "simd.h"

namespace SRR_NS {

constexpr int64_t STRIDE = 16;  // one value in so many is sampled

static bool add_rows(float* values, const float* more, int64_t n) {
  vi odd = {};
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    vf v = load(values + i) + load(more + i);
    store(values + i, v);
    odd |= v != v;
  }
  bool nan = false;
  for (int j = 0; j < W; ++j) nan |= odd[j] != 0;
  for (; i < n; ++i) {
    values[i] += more[i];
    nan |= values[i] != values[i];
  }
  return nan;
}

// Bits that order as the floats do; -0 equals 0.
static inline int32_t ordered(float x) {
  x += 0.0f;
  int32_t bits;
  memcpy(&bits, &x, 4);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

// The greatest key that at least `count` of n keys reach, count <= n. n is a multiple of W (pad with INT32_MIN).
static int32_t reached_by(const int32_t* keys, int64_t n, int64_t count) {
  int64_t found = INT32_MIN;
  for (int bit = 31; bit >= 0; --bit) {
    const int64_t tried = found + (int64_t(1) << bit);
    if (tried > INT32_MAX) continue;
    const vi least = vi{} + int32_t(tried);
    vi a = {}, b = {};
    int64_t i = 0;
    for (; i + PAIR <= n; i += PAIR) {
      vi x, y;
      memcpy(&x, keys + i, sizeof x);
      memcpy(&y, keys + i + W, sizeof y);
      a -= x >= least;
      b -= y >= least;
    }
    for (; i < n; i += W) {
      vi x;
      memcpy(&x, keys + i, sizeof x);
      a -= x >= least;
    }
    a += b;
    int64_t reached = 0;
    for (int j = 0; j < W; ++j) reached += a[j];
    if (reached >= count) found = tried;
  }
  return int32_t(found);
}

static int64_t pad(int32_t* keys, int64_t n) {
  for (; n % W != 0; ++n) keys[n] = INT32_MIN;
  return n;
}

static inline float as_value(int32_t key) {
  key ^= (key >> 31) & 0x7fffffff;
  float x;
  memcpy(&x, &key, 4);
  return x;
}

static int64_t best(const float* values, int64_t n, int64_t count, int32_t* list, int32_t* scratch) {
  if (count >= n) {
    for (int64_t i = 0; i < n; ++i) list[i] = int32_t(i);
    return n;
  }
  int64_t found = 0, sampled = 0;
  // A quarter more than their share of the sample, and a few: where even so it gives too few, all are looked at.
  const int64_t wanted = count / STRIDE + count / STRIDE / 4 + 16;
  if (wanted * 2 < n / STRIDE) {
    for (int64_t i = 0; i + STRIDE <= n; i += STRIDE) scratch[sampled++] = ordered(values[i]);
    const float least = as_value(reached_by(scratch, pad(scratch, sampled), wanted));
    for (int64_t i = 0; i < n; ++i) {
      list[found] = int32_t(i);
      found += values[i] >= least;
    }
  }
  if (found < count) {
    for (int64_t i = 0; i < n; ++i) list[i] = int32_t(i);
    found = n;
  }
  for (int64_t i = 0; i < found; ++i) scratch[i] = ordered(values[list[i]]);
  const float least = as_value(reached_by(scratch, pad(scratch, found), count));
  int64_t kept = 0;
  for (int64_t i = 0; i < found; ++i) {
    const int32_t at = list[i];
    list[kept] = at;
    kept += values[at] >= least;
  }
  return kept;
}

}  // namespace SRR_NS
