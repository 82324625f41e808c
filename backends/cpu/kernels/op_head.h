// srr::vocab_head: coarse logits from the channels of a rotated input that matter, exact ones for the best tokens.
#pragma once
#include "many_rows.h"

namespace srr {

constexpr int64_t SCALE_BLOCK = 4096;  // as srrc/ops/vocab_head.py

struct Head {
  Rows x;
  Weight weight, rotation, coarse;  // `coarse` unless it is int8
  int rotation_dtype = F32, coarse_dtype = F32;
  const void* small = nullptr;      // int8 [k][n], input-major, `small_ld` from one channel to the next
  int64_t small_ld = 0;
  const float *mean = nullptr, *scale = nullptr, *coarse_bias = nullptr, *norm = nullptr;
  Gate gate{-1, 0};
  int64_t* counters = nullptr;
  int64_t exact = 0;

  bool read(const Call& call) {
    if (!x.read(call.tensor(0)) || !weight.read(call.tensor(1), call.maybe(2), x.dtype, x.k)) return false;
    const int64_t k = x.k, n = weight.n;
    rotation_dtype = dtype_of(call.tensor(3).scalar_type());
    if (rotation_dtype < 0 || !rotation.read(call.tensor(3), nullptr, rotation_dtype, k) || rotation.n != k)
      return false;
    mean = floats(call.tensor(4), k);
    if (!read_coarse(call.tensor(5), call.maybe(6))) return false;
    coarse_bias = floats(call.tensor(7), n);
    norm = floats(call.tensor(8), k);
    const float* record = floats(call.tensor(9), 2);
    counters = counts(call.tensor(10), 4);
    exact = call.at(11).toInt();
    if (!mean || !coarse_bias || !norm || !record || !counters || exact < 1) return false;
    gate = {record[0], record[1]};
    return true;
  }

 private:
  bool read_coarse(const Tensor& t, const Tensor* scales) {
    if (scales == nullptr) {
      coarse_dtype = dtype_of(t.scalar_type());
      return coarse_dtype >= 0 && coarse.read(t, nullptr, coarse_dtype, x.k) && coarse.n == weight.n;
    }
    if (!plain(t) || t.scalar_type() != at::kChar || t.dim() != 2) return false;
    if (t.size(0) != weight.n || t.size(1) != x.k || t.stride(0) != 1 || weight.n < table_in_use->padding) return false;
    small = t.const_data_ptr();
    small_ld = t.stride(1);
    scale = floats(*scales, (weight.n + SCALE_BLOCK - 1) / SCALE_BLOCK * x.k);
    return scale != nullptr && small_ld >= weight.n;
  }
};

// rotation @ (x - mean), in float: an input of its own.
inline Input rotated(Scratch::Scope& scope, const Head& head, const Input& x) {
  Input centred;
  centred.rows = x.rows;
  centred.dtype = head.rotation_dtype;
  centred.k = centred.ld = centred.kept.count = x.k;
  float* to = scope.take<float>(x.rows * x.k);
  for (int m = 0; m < x.rows; ++m)
    for (int64_t k = 0; k < x.k; ++k) to[m * x.k + k] = x.natural[m * x.ld + k] - head.mean[k];
  centred.natural = to;
  Product turned{head.rotation};
  multiply(scope, centred, &turned, 1);
  Input y;
  y.rows = x.rows;
  y.dtype = head.coarse_dtype;
  y.k = y.kept.count = x.k;
  y.natural = turned.out;
  y.ld = turned.ld;
  return y;
}

// Coarse logits without their bias, of the channels of y that are kept: [rows][ld] in scratch.
inline float* coarse_product(Scratch::Scope& scope, const Head& head, Input& y, int64_t& ld) {
  if (head.small == nullptr) {
    Product logits{head.coarse};
    multiply(scope, y, &logits, 1);
    ld = logits.ld;
    return logits.out;
  }
  const int64_t n = head.weight.n, count = y.kept.count;
  ld = padded(n);
  float* out = scope.take<float>(y.rows * ld);
  const int64_t grain = std::max<int64_t>(1, WORTH_A_THREAD / (SCALE_BLOCK * std::max<int64_t>(1, count)));
  at::parallel_for(0, (n + SCALE_BLOCK - 1) / SCALE_BLOCK, grain, [&](int64_t begin, int64_t end) {
    Scratch::Scope own;
    float* coef = own.take<float>(y.rows * count);
    for (int64_t b = begin; b < end; ++b) {
      const float* scale = head.scale + b * y.k;
      for (int m = 0; m < y.rows; ++m)
        for (int64_t i = 0; i < count; ++i) {
          const int64_t k = y.kept.list ? y.kept.list[i] : i;
          coef[m * count + i] = y.natural[m * y.ld + k] * scale[k];
        }
      table_in_use->axpy_int8(
          {head.small, head.small_ld, n, coef, count, y.rows, y.kept.list, count, out, nullptr, ld},
          b * SCALE_BLOCK, std::min(n, (b + 1) * SCALE_BLOCK));
    }
  });
  return out;
}

// The tokens of one row that get exact logits.
inline Kept best_tokens(Scratch::Scope& scope, const Head& head, const float* coarse) {
  const int64_t n = head.weight.n;
  int32_t* list = scope.take<int32_t>(n);
  int32_t* spare = scope.take<int32_t>(padded(n));
  return {list, table_in_use->best(coarse, n, head.exact, list, spare), 0};
}

// Exact logits of row m of x, in the places of its coarse ones.
inline void exact_tokens(const Head& head, const Input& x, int m, const Kept& tokens, float* logits) {
  const Dot dot{head.weight.data, head.weight.ld, x.k, x.packed + m * x.ld_packed, x.ld_packed, 1, tokens.list, true,
                logits, 0};
  const int64_t grain = std::max<int64_t>(1, WORTH_A_THREAD / (x.k * int64_t(size_of(x.dtype))));
  at::parallel_for(0, tokens.count, grain,
                   [&](int64_t begin, int64_t end) { table_in_use->dot[x.dtype](dot, begin, end); });
  if (head.weight.bias == nullptr) return;
  for (int64_t i = 0; i < tokens.count; ++i) {
    const int64_t n = tokens.list[i];
    float bias;
    table_in_use->widen[x.dtype](offset(head.weight.bias, n, x.dtype), &bias, 1);
    logits[n] += bias;
  }
}

inline void put(const Head& head, const float* logits, void* out, int64_t row) {
  const int64_t n = head.weight.n;
  finish(head.x.dtype, logits, n, nullptr, const_cast<void*>(offset(out, row * n, head.x.dtype)), n, n, 1);
}

inline void count_head(const Head& head, int64_t executed, int64_t failed, int64_t coarse_rows) {
  count(head.counters, head.x.rows * head.x.k, executed, failed);
  __atomic_fetch_add(head.counters + 3, coarse_rows, __ATOMIC_RELAXED);
}

// True, and `out` filled, where the coarse way was taken; false where all must be exact.
inline bool head_few_rows(const Head& head, Input& x, Tensor& out, int64_t& failed) {
  Scratch::Scope scope;
  Input y = rotated(scope, head, x);
  y.kept = decide(scope, y.natural, y.ld, head.norm, head.gate, y.rows, y.k);
  failed = y.kept.failed;
  if (y.kept.list == nullptr) return false;
  int64_t ld = 0;
  float* logits = coarse_product(scope, head, y, ld);
  for (int m = 0; m < x.rows; ++m) failed += table_in_use->add(logits + m * ld, head.coarse_bias, head.weight.n);
  if (failed) return false;
  x.prepare(scope, true, false);
  for (int m = 0; m < x.rows; ++m) {
    Scratch::Scope own;
    const Kept tokens = best_tokens(own, head, logits + m * ld);
    exact_tokens(head, x, m, tokens, logits + m * ld);
    put(head, logits + m * ld, out.mutable_data_ptr(), m);
  }
  count_head(head, x.rows * y.kept.count, 0, x.rows);
  return true;
}

// Many rows: exact logits for all, and then coarse ones in most of their places, as each row alone decides.
inline void coarsen(const Head& head, Tensor& out, int64_t& failed) {
  const int64_t n = head.weight.n, k = head.x.k;
  for (int64_t first = 0; first < head.x.rows; first += MAX_ROWS) {
    Scratch::Scope scope;
    Rows some = head.x;
    some.rows = std::min<int64_t>(MAX_ROWS, head.x.rows - first);
    some.data = offset(head.x.data, first * k, head.x.dtype);
    Input x = Input::read(scope, some);
    const Input all = rotated(scope, head, x);
    float* exact = scope.take<float>(n);
    for (int m = 0; m < x.rows; ++m) {
      Scratch::Scope own;
      Input y = all;
      y.rows = 1;
      y.natural += m * all.ld;
      y.kept = decide(own, y.natural, y.ld, head.norm, head.gate, 1, k);
      failed += y.kept.failed;
      if (y.kept.list == nullptr) continue;
      int64_t ld = 0;
      float* row = coarse_product(own, head, y, ld);
      if (table_in_use->add(row, head.coarse_bias, n)) {
        ++failed;
        continue;
      }
      const Kept tokens = best_tokens(own, head, row);
      const void* dense = offset(out.const_data_ptr(), (first + m) * n, head.x.dtype);
      table_in_use->widen[head.x.dtype](dense, exact, n);
      for (int64_t i = 0; i < tokens.count; ++i) row[tokens.list[i]] = exact[tokens.list[i]];
      put(head, row, out.mutable_data_ptr(), first + m);
    }
  }
}

inline void vocab_head(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  Call call(op, stack);
  Head head;
  if (!head.read(call)) return call.reference();
  const bool open = !(head.gate.threshold >= 0), many = head.x.rows > MAX_ROWS;
  if (head.weight.input_major && !open && !many) return call.reference();  // single tokens cannot be read from it
  int64_t failed = open && 1.0f < head.gate.min_kept ? head.x.rows : 0;
  Scratch::Scope scope;
  Tensor out;
  if (many) {
    out = linear(head.x.held, widened(scope, head.x), head.weight, call.tensor(1), call.maybe(2));
    if (!open) coarsen(head, out, failed);
  } else {
    Input x = Input::read(scope, head.x);
    out = fresh(call.tensor(0), head.weight.n);
    if (!open && head_few_rows(head, x, out, failed)) return call.give(std::move(out));
    Product all{head.weight};
    multiply(scope, x, &all, 1);
    finish(x.dtype, all.out, all.ld, head.weight.bias, out.mutable_data_ptr(), all.weight.n, all.weight.n, x.rows);
  }
  count_head(head, head.x.rows * head.x.k, failed, 0);
  call.give(std::move(out));
}

}  // namespace srr
