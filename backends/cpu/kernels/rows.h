// Work on single rows of values: widening, packing, rounding, activations, exponentials.
#pragma once
#include "math.h"
#include "table.h"

namespace SRR_NS {

template <class T>
static void widen_row(const void* from, float* out, int64_t n) {
  const T* x = static_cast<const T*>(from);
  int64_t i = 0;
  for (; i + PAIR <= n; i += PAIR) {
    Two v = to_natural(load_pair(x + i), x);
    store(out + i, v.a);
    store(out + i + W, v.b);
  }
  for (; i < n; ++i) out[i] = widen(x[i]);
}

// Natural order to the order in which `dot` meets the weights, zeros up to the next whole pair.
template <class T>
static void pack_row(const float* x, float* out, int64_t n) {
  const T* t = nullptr;
  int64_t i = 0;
  for (; i < n; i += PAIR) {
    Two v = i + PAIR <= n ? load_pair(x + i) : load_part(x + i, n - i);
    v = to_pair(v, t);
    store(out + i, v.a);
    store(out + i + W, v.b);
  }
}

template <class T>
static void finish_row(const float* x, const void* bias, void* out, int64_t n) {
  const T* b = static_cast<const T*>(bias);
  T* y = static_cast<T*>(out);
  if (b)
    for (int64_t i = 0; i < n; ++i) narrow(x[i] + widen(b[i]), y + i);
  else
    for (int64_t i = 0; i < n; ++i) narrow(x[i], y + i);
}

// The first `count` of W values, the rest zero; and their counterpart.
static inline vf load_some(const float* p, int64_t count) {
  float buffer[W] = {};
  memcpy(buffer, p, size_t(count) * sizeof(float));
  return load(buffer);
}
static inline void store_some(float* p, vf v, int64_t count) { memcpy(p, &v, size_t(count) * sizeof(float)); }

// values[i] = step(values[i], i) for every i, W at a time.
template <class F>
static inline void each(float* values, int64_t n, F step) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(values + i, step(load(values + i), i, W));
  if (i < n) store_some(values + i, step(load_some(values + i, n - i), i, n - i), n - i);
}

static inline vf load_up_to(const float* p, int64_t count) { return count == W ? load(p) : load_some(p, count); }

template <class T>
static inline vf biased(vf v, const T* bias, int64_t i, int64_t count) {
  if (bias) {
    float b[W] = {};
    for (int64_t j = 0; j < count; ++j) b[j] = widen(bias[i + j]);
    v = v + load(b);
  }
  return round_to(v, bias);
}

template <class T, Act act>
static void activate_row(float* gate, const T* gate_bias, const float* up, const T* up_bias, int64_t n) {
  const T* t = nullptr;
  each(gate, n, [&](vf v, int64_t i, int64_t count) {
    vf a = activate<T>(act, biased(v, gate_bias, i, count));
    return up ? round_to(a * biased(load_up_to(up + i, count), up_bias, i, count), t) : a;
  });
}

template <class T>
static void activate_any(int act, float* gate, const void* gate_bias, const float* up, const void* up_bias,
                         int64_t n) {
  const T *gb = static_cast<const T*>(gate_bias), *ub = static_cast<const T*>(up_bias);
  switch (act) {
    case SILU: return activate_row<T, SILU>(gate, gb, up, ub, n);
    case GELU: return activate_row<T, GELU>(gate, gb, up, ub, n);
    case GELU_TANH: return activate_row<T, GELU_TANH>(gate, gb, up, ub, n);
    case RELU: return activate_row<T, RELU>(gate, gb, up, ub, n);
    case RELU2: return activate_row<T, RELU2>(gate, gb, up, ub, n);
    case QUICK_GELU: return activate_row<T, QUICK_GELU>(gate, gb, up, ub, n);
    case SIGMOID: return activate_row<T, SIGMOID>(gate, gb, up, ub, n);
    case TANH: return activate_row<T, TANH>(gate, gb, up, ub, n);
    default: return;
  }
}

template <class T>
static void multiply_row(float* values, const float* up, const void* up_bias, int64_t n) {
  const T* bias = static_cast<const T*>(up_bias);
  each(values, n, [&](vf v, int64_t i, int64_t count) {
    return round_to(v * biased(load_up_to(up + i, count), bias, i, count), bias);
  });
}

static void project_row(const float* x, const float* weight, int64_t n, float* sums) {
  vf dot[2] = {}, squares[2] = {};
  int64_t i = 0;
  for (; i + PAIR <= n; i += PAIR)
    for (int half = 0; half < 2; ++half) {
      const vf v = load(x + i + half * W);
      dot[half] += v * load(weight + i + half * W);
      squares[half] += v * v;
    }
  sums[0] = sum(dot[0] + dot[1]);
  sums[1] = sum(squares[0] + squares[1]);
  for (; i < n; ++i) {
    sums[0] += x[i] * weight[i];
    sums[1] += x[i] * x[i];
  }
}

static int64_t keep_row(const float* x, const float* norm, float threshold, int64_t n, int32_t* kept) {
  const vf limit = splat(threshold);
  vi count = {};
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    vf score = vabs(load(x + i));
    if (norm) score = score * load(norm + i);
    vi keep;
    memcpy(&keep, kept + i, sizeof keep);
    const vi mine = ~vi(score <= limit);
    keep |= mine;
    memcpy(kept + i, &keep, sizeof keep);
    count -= mine;
  }
  int64_t total = 0;
  for (int j = 0; j < W; ++j) total += count[j];
  for (; i < n; ++i) {
    const bool mine = !(__builtin_fabsf(x[i]) * (norm ? norm[i] : 1.0f) <= threshold);
    if (mine) kept[i] = -1;
    total += mine;
  }
  return total;
}

// NaN if any value is NaN.
static float greatest(const float* x, int64_t n) {
  vf best = splat(-__builtin_inff()), odd = vf{};
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    vf v = load(x + i);
    best = blend(v > best, v, best);
    odd += v - v;  // NaN where v is NaN (or infinite, which is told apart below)
  }
  float result = -__builtin_inff(), nan = sum(odd);
  for (int j = 0; j < W; ++j) result = best[j] > result ? best[j] : result;
  for (; i < n; ++i) {
    result = x[i] > result ? x[i] : result;
    nan += x[i] - x[i];
  }
  if (nan != nan)
    for (i = 0; i < n; ++i)
      if (x[i] != x[i]) return x[i];
  return result;
}

static float exp_sum(float* x, float max, int64_t n) {
  vf total = {};
  const vf shift = splat(max);
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    vf e = vexp(load(x + i) - shift);
    store(x + i, e);
    total += e;
  }
  float rest = 0;
  if (i < n) {
    vf e = vexp(load_some(x + i, n - i) - shift);
    store_some(x + i, e, n - i);
    for (int64_t j = i; j < n; ++j) rest += x[j];
  }
  return sum(total) + rest;
}

static void exp_row(float* x, int64_t n) {
  each(x, n, [](vf v, int64_t, int64_t) { return vexp(v); });
}

}  // namespace SRR_NS
