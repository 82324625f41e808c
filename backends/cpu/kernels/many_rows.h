// Linears of many rows: torch's own, except bf16 where the machine has no bf16 instructions (there torch's
// products run 7 to 10 times slower than its float ones).
#pragma once
#include <ATen/ops/linear.h>

#include <atomic>

#include "linears.h"

namespace srr {

inline bool native_bf16() {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
#else
  return true;
#endif
}

// x [rows][k] in float, widened once for all the linears that read it; null where torch takes over.
inline const float* widened(Scratch::Scope& scope, const Rows& x) {
  if (x.dtype != BF16 || native_bf16()) return nullptr;
  float* wide = scope.take<float>(x.rows * x.k);
  at::parallel_for(0, x.rows, 16, [&](int64_t begin, int64_t end) {
    table_in_use->widen[BF16](offset(x.data, begin * x.k, BF16), wide + begin * x.k, (end - begin) * x.k);
  });
  return wide;
}

// out [rows][ldo] = x @ w^T + bias, bf16, by our own kernel.
inline void gemm(const float* x, int64_t rows, const Weight& w, void* out, int64_t ldo) {
  const Gemm g{x, rows, w.n, w.k, w.data, w.ld, w.input_major, w.bias, out, ldo};
  const int64_t panel = table_in_use->padding, panels = (w.n + panel - 1) / panel;
  at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    Scratch::Scope scope;
    float* scratch = scope.take<float>(table_in_use->gemm_scratch(rows));
    table_in_use->gemm(g, scratch, begin * panel, std::min(w.n, end * panel));
  });
}

// One linear, into out[..., at : at + n] of a tensor whose last dimension is `last` (== n: the whole tensor).
inline Tensor linear(const Tensor& x, const float* wide, const Weight& w, const Tensor& weight, const Tensor* bias) {
  if (wide == nullptr) return at::linear(x, weight, bias ? std::optional<Tensor>(*bias) : std::nullopt).contiguous();
  Tensor out = fresh(x, w.n);
  gemm(wide, x.numel() / w.k, w, out.mutable_data_ptr(), w.n);
  return out;
}

// A copy of x in which each row keeps only what its gate keeps. Rows above MAX_ROWS decide for themselves.
inline Tensor gated(const Rows& x, const float* norm, const float* probe, Gate gate, int64_t& failed) {
  Tensor out = fresh(x.held, x.k);
  void* to = out.mutable_data_ptr();
  std::atomic<int64_t> fails{0};
  at::parallel_for(0, x.rows, 8, [&](int64_t begin, int64_t end) {
    Scratch::Scope outer;
    float *row = outer.take<float>(x.k), *masked = outer.take<float>(x.k);
    for (int64_t m = begin; m < end; ++m) {
      Scratch::Scope scope;
      table_in_use->widen[x.dtype](offset(x.data, m * x.k, x.dtype), row, x.k);
      const Kept kept = decide(scope, row, x.k, norm, gate, 1, x.k, nullptr, emphases(scope, row, x.k, 1, probe, gate, x.k));
      fails += kept.failed;
      keep_only(kept, row, masked, x.k);
      finish(x.dtype, masked, x.k, nullptr, const_cast<void*>(offset(to, m * x.k, x.dtype)), x.k, x.k, 1);
    }
  });
  failed = fails;
  return out;
}

}  // namespace srr
