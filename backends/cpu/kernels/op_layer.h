// srr::layer_gate, for a few rows: they are computed together, so the branch runs for all of them or for none.
#pragma once
#include <cmath>

#include "gates.h"

namespace srr {

inline void layer_gate(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  Call call(op, stack);
  Rows x;
  if (!x.read(call.tensor(0)) || x.rows > MAX_ROWS) return call.reference();
  const float *probe = floats(call.tensor(1), x.k + 1), *record = floats(call.tensor(2), 2);
  int64_t* counters = counts(call.tensor(3), 3);
  if (!probe || !record || !counters) return call.reference();
  const float threshold = record[0], min_kept = record[1];
  int64_t failed = 0;
  bool any = !(threshold >= 0);
  if (any) {
    failed = 1.0f < min_kept ? x.rows : 0;  // open: nothing need be looked at
  } else {
    Scratch::Scope scope;
    float* wide = x.dtype == F32 ? nullptr : scope.take<float>(x.k);
    for (int64_t m = 0; m < x.rows; ++m) {
      const void* from = offset(x.data, m * x.k, x.dtype);
      if (wide) table_in_use->widen[x.dtype](from, wide, x.k);
      float sums[2];
      table_in_use->project(wide ? wide : static_cast<const float*>(from), probe, x.k, sums);
      const float score = std::exp(sums[0] / std::sqrt(sums[1] / float(x.k)) + probe[x.k]);
      const bool kept = !(score <= threshold), fails = float(kept) < min_kept;
      failed += fails;
      any = any || kept || fails;
    }
  }
  count(counters, x.rows, any ? x.rows : 0, failed);
  const Tensor& in = call.tensor(0);
  c10::SmallVector<int64_t, 6> sizes(in.sizes().begin(), in.sizes().end());
  sizes.back() = 1;
  Tensor keep(at::detail::empty_cpu(sizes, at::kBool));
  memset(keep.mutable_data_ptr(), any, size_t(x.rows));
  call.give(std::move(keep));
}

}  // namespace srr
