// Linears that share one input of few rows: prepared once, neighbours in memory merged, one parallel region.
#pragma once
#include "gates.h"

namespace srr {

// The input of few rows in every form that kernels want.
struct Input {
  int rows = 0, dtype = F32;
  int64_t k = 0;
  const float* natural = nullptr;  // [rows][ld]
  int64_t ld = 0;
  Kept kept;                       // what of it takes part

  const float* packed = nullptr;   // for row-major weights: what is dropped is zero
  int64_t ld_packed = 0;
  const float* coef = nullptr;     // for input-major weights: only what is kept
  int64_t ld_coef = 0;

  static Input read(Scratch::Scope& scope, const Rows& x) {
    Input in;
    in.rows = int(x.rows);
    in.dtype = x.dtype;
    in.k = in.ld = x.k;
    in.kept.count = x.k;
    if (x.dtype == F32) {
      in.natural = static_cast<const float*>(x.data);
    } else {
      float* wide = scope.take<float>(x.rows * x.k);
      table_in_use->widen[x.dtype](x.data, wide, x.rows * x.k);
      in.natural = wide;
    }
    return in;
  }

  // The same rows with nothing left out.
  Input whole() const {
    Input in;
    in.rows = rows;
    in.dtype = dtype;
    in.k = in.kept.count = k;
    in.natural = natural;
    in.ld = ld;
    return in;
  }

  void prepare(Scratch::Scope& scope, bool row_major, bool input_major) {
    if (row_major && !packed) {
      if (dtype == F32 && kept.list == nullptr && k % table_in_use->padding == 0) {
        packed = natural;
        ld_packed = ld;
      } else {
        ld_packed = padded(k);
        float* to = scope.take<float>(rows * ld_packed);
        float* masked = kept.list ? scope.take<float>(k) : nullptr;
        for (int m = 0; m < rows; ++m) {
          const float* from = natural + m * ld;
          if (masked) keep_only(kept, from, masked, k);
          table_in_use->pack[dtype](masked ? masked : from, to + m * ld_packed, k);
        }
        packed = to;
      }
    }
    if (input_major && !coef) {
      coef = natural;
      ld_coef = ld;
      if (kept.list) {
        float* to = scope.take<float>(rows * kept.count);
        for (int m = 0; m < rows; ++m)
          for (int64_t i = 0; i < kept.count; ++i) to[m * kept.count + i] = natural[m * ld + kept.list[i]];
        coef = to;
        ld_coef = kept.count;
      }
    }
  }
};

struct Product {
  Weight weight;
  float* out = nullptr;  // [rows][ld]
  int64_t ld = 0;
};

constexpr int64_t GRANULE = 64;            // rows or columns of a weight that one thread takes at least
constexpr int64_t WORTH_A_THREAD = 1 << 17;  // bytes of weights

inline bool follows(const Weight& a, const Weight& b, int dtype) {
  return a.input_major == b.input_major && a.ld == b.ld &&
         b.data == offset(a.data, a.input_major ? a.n : a.n * a.ld, dtype) && (!a.input_major || a.ld >= a.n + b.n);
}

// out = x @ weight^T in float, without bias, for each product; `out` is taken from the scratch.
inline void multiply(Scratch::Scope& scope, Input& x, Product* products, int count) {
  struct Part {
    Weight weight;
    float *out, *spare;
    int64_t ld, first;
  };
  c10::SmallVector<Part, 4> parts;
  bool row_major = false, input_major = false;
  int64_t granules = 0;
  for (int i = 0; i < count;) {
    Weight whole = products[i].weight;
    int j = i + 1;
    for (; j < count && follows(products[j - 1].weight, products[j].weight, x.dtype); ++j)
      whole.n += products[j].weight.n;
    const int64_t ld = padded(whole.n);
    float* out = scope.take<float>(x.rows * ld);
    float* spare = whole.input_major && x.dtype == F32 ? scope.take<float>(x.rows * ld) : nullptr;
    parts.push_back({whole, out, spare, ld, granules});
    granules += (whole.n + GRANULE - 1) / GRANULE;
    (whole.input_major ? input_major : row_major) = true;
    for (; i < j; ++i) {
      products[i].out = out;
      products[i].ld = ld;
      out += products[i].weight.n;
    }
  }
  x.prepare(scope, row_major, input_major);
  const int64_t bytes = GRANULE * x.kept.count * int64_t(size_of(x.dtype));
  const int64_t grain = std::max<int64_t>(1, WORTH_A_THREAD / std::max<int64_t>(1, bytes));
  at::parallel_for(0, granules, grain, [&](int64_t begin, int64_t end) {
    for (const Part& p : parts) {
      const int64_t from = std::max<int64_t>(0, (begin - p.first) * GRANULE);
      const int64_t to = std::min(p.weight.n, (end - p.first) * GRANULE);
      if (from >= to) continue;
      if (p.weight.input_major)
        table_in_use->axpy[x.dtype]({p.weight.data, p.weight.ld, p.weight.n, x.coef, x.ld_coef, x.rows, x.kept.list,
                                     x.kept.count, p.out, p.spare, p.ld},
                                    from, to);
      else
        table_in_use->dot[x.dtype]({p.weight.data, p.weight.ld, p.weight.k, x.packed, x.ld_packed, x.rows, nullptr,
                                    false, p.out, p.ld},
                                   from, to);
    }
  });
}

}  // namespace srr
