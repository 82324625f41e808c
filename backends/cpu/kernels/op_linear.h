// srr::dense_linear and srr::channel_linear.
#pragma once
#include "many_rows.h"

namespace srr {

struct Linears {
  Rows x;
  c10::SmallVector<Product, 4> products;
  c10::ArrayRef<c10::IValue> weights, biases;

  bool read(const Call& call) {
    if (!x.read(call.tensor(0))) return false;
    weights = call.at(1).toListRef();
    biases = call.at(2).toListRef();
    if (weights.empty() || weights.size() != biases.size()) return false;
    products.resize(weights.size());
    for (size_t i = 0; i < weights.size(); ++i)
      if (!products[i].weight.read(weights[i].toTensor(), bias(i), x.dtype, x.k)) return false;
    return true;
  }
  const Tensor* bias(size_t i) const { return biases[i].isNone() ? nullptr : &biases[i].toTensor(); }
};

inline void dense_linear(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  Call call(op, stack);
  Linears all;
  if (!all.read(call)) return call.reference();
  Scratch::Scope scope;
  c10::List<Tensor> results;
  results.reserve(all.products.size());
  if (all.x.rows <= MAX_ROWS) {
    Input x = Input::read(scope, all.x);
    multiply(scope, x, all.products.data(), int(all.products.size()));
    for (const Product& p : all.products) {
      Tensor out = fresh(call.tensor(0), p.weight.n);
      finish(x.dtype, p.out, p.ld, p.weight.bias, out.mutable_data_ptr(), p.weight.n, p.weight.n, x.rows);
      results.push_back(std::move(out));
    }
  } else {
    const float* wide = widened(scope, all.x);
    for (size_t i = 0; i < all.products.size(); ++i)
      results.push_back(
          linear(all.x.held, wide, all.products[i].weight, all.weights[i].toTensor(), all.bias(i)));
  }
  call.give(std::move(results));
}

inline void channel_linear(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  Call call(op, stack);
  Linears all;
  if (!all.read(call)) return call.reference();
  const float *norm = floats(call.tensor(3), all.x.k), *record = floats(call.tensor(4), 2);
  int64_t* counters = counts(call.tensor(5), 3);
  const Tensor* probes = call.maybe(6);
  const float* probe = probes ? floats(*probes, all.x.k + 1) : nullptr;
  if (!norm || !record || !counters || (probes && !probe)) return call.reference();
  const Gate gate{record[0], record[1]};
  int64_t width = 0;
  for (const Product& p : all.products) width += p.weight.n;
  Tensor out = fresh(call.tensor(0), width);
  char* to = static_cast<char*>(out.mutable_data_ptr());
  Scratch::Scope scope;
  const int64_t offered = all.x.rows * all.x.k;
  if (all.x.rows <= MAX_ROWS) {
    Input x = Input::read(scope, all.x);
    const float* more = emphases(scope, x.natural, x.ld, x.rows, probe, gate, x.k);
    x.kept = decide(scope, x.natural, x.ld, norm, gate, x.rows, x.k, nullptr, more);
    count(counters, offered, x.rows * x.kept.count, x.kept.failed);
    multiply(scope, x, all.products.data(), int(all.products.size()));
    for (const Product& p : all.products) {
      finish(x.dtype, p.out, p.ld, p.weight.bias, to, width, p.weight.n, x.rows);
      to += p.weight.n * int64_t(size_of(x.dtype));
    }
  } else {
    Rows masked;
    int64_t failed = 0;
    masked.read(gated(all.x, norm, probe, gate, failed));
    count(counters, offered, offered, failed);
    const float* wide = widened(scope, masked);
    int64_t at = 0;
    for (size_t i = 0; i < all.products.size(); ++i) {
      const Weight& w = all.products[i].weight;
      if (wide)
        gemm(wide, masked.rows, w, to + at * int64_t(size_of(BF16)), width);
      else
        out.narrow(-1, at, w.n).copy_(linear(masked.held, nullptr, w, all.weights[i].toTensor(), all.bias(i)));
      at += w.n;
    }
  }
  call.give(std::move(out));
}

}  // namespace srr
