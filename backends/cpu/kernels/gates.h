// The decision of a gate, as srrc/ops/gate.py has it: keep unless score <= threshold; where a row keeps fewer than
// min_kept of its units, that row keeps everything; rows that are computed together share the union.
#pragma once
#include <algorithm>
#include <cmath>

#include "support.h"

namespace srr {

struct Gate {
  float threshold, min_kept;
};

struct Kept {
  const int32_t* list = nullptr;  // null: everything that was offered, when that was everything
  int64_t count = 0;
  int64_t failed = 0;
};

// Float [..., 2] records, float norms and int64 counters, all contiguous: anything else goes to the reference.
inline const float* floats(const Tensor& t, int64_t count) {
  return plain(t) && t.scalar_type() == at::kFloat && t.numel() == count && t.is_contiguous()
             ? t.const_data_ptr<float>()
             : nullptr;
}
inline int64_t* counts(const Tensor& t, int64_t count) {
  return plain(t) && t.scalar_type() == at::kLong && t.numel() == count && t.is_contiguous()
             ? t.mutable_data_ptr<int64_t>()
             : nullptr;
}

// Several threads may run one compiled model.
inline void count(int64_t* counters, int64_t offered, int64_t executed, int64_t failed) {
  __atomic_fetch_add(counters, offered, __ATOMIC_RELAXED);
  __atomic_fetch_add(counters + 1, executed, __ATOMIC_RELAXED);
  __atomic_fetch_add(counters + 2, failed, __ATOMIC_RELAXED);
}

constexpr float EMPHASIS_LIMIT = 2.0f;  // of a row's emphasis either way, as in srrc/ops/emphasis.py

// What the scores of one row x [k] are multiplied by, as srrc/ops/emphasis.py has it. probe [k + 1].
inline float emphasis(const float* x, const float* probe, int64_t k) {
  float sums[2];
  table_in_use->project(x, probe, k, sums);
  const float rms = std::sqrt(sums[1] / float(k));
  const float value = (rms > 0 ? sums[0] / rms : 0.0f) + probe[k];
  return std::exp(std::clamp(value, -EMPHASIS_LIMIT, EMPHASIS_LIMIT));
}

// Of each row of x [rows][ld]; null where there is no probe, or the gate is open and does not ask.
inline const float* emphases(Scratch::Scope& scope, const float* x, int64_t ld, int64_t rows, const float* probe,
                             Gate gate, int64_t k) {
  if (probe == nullptr || !(gate.threshold >= 0)) return nullptr;
  float* found = scope.take<float>(rows);
  for (int64_t m = 0; m < rows; ++m) found[m] = emphasis(x + m * ld, probe, k);
  return found;
}

// values [rows][ld], scored |value| * norm (norm null: ones); `from`: the units that an earlier gate left, null all;
// more [rows]: what each row's scores are multiplied by, null ones.
inline Kept decide(Scratch::Scope& scope, const float* values, int64_t ld, const float* norm, Gate gate, int rows,
                   int64_t units, const Kept* from = nullptr, const float* more = nullptr) {
  const int32_t* offered = from ? from->list : nullptr;
  const int64_t total = from ? from->count : units;
  if (!(gate.threshold >= 0)) return {offered, total, float(total) < gate.min_kept * float(total) ? rows : 0};
  int32_t *kept = scope.take<int32_t>(units), *list = scope.take<int32_t>(total + 1);
  memset(kept, 0, size_t(units) * sizeof(int32_t));
  int64_t failed = 0, together = 0;
  for (int m = 0; m < rows; ++m) {
    const float threshold = more ? gate.threshold / more[m] : gate.threshold;
    int64_t mine = table_in_use->keep(values + m * ld, norm, threshold, units, kept);
    if (offered) {
      mine = 0;
      for (int64_t i = 0; i < total; ++i) {
        const int64_t k = offered[i];
        mine += !(std::fabs(values[m * ld + k]) * (norm ? norm[k] : 1.0f) <= threshold);
      }
    }
    failed += float(mine) < gate.min_kept * float(total);
    together = std::max(together, mine);
  }
  if (failed || together == total) return {offered, total, failed};
  together = 0;
  for (int64_t i = 0; i < total; ++i) {
    const int32_t k = offered ? offered[i] : int32_t(i);
    list[together] = k;
    together -= kept[k];
  }
  if (together == total) return {offered, total, 0};
  return {list, together, 0};
}

// Zero what is not kept. from [ld] -> to: natural order, one row.
inline void keep_only(const Kept& kept, const float* from, float* to, int64_t units) {
  if (kept.list == nullptr) {
    if (from != to) memcpy(to, from, size_t(units) * sizeof(float));
    return;
  }
  if (from == to) {
    int64_t next = 0;
    for (int64_t i = 0; i < kept.count; ++i) {
      for (; next < kept.list[i]; ++next) to[next] = 0;
      ++next;
    }
    for (; next < units; ++next) to[next] = 0;
    return;
  }
  memset(to, 0, size_t(units) * sizeof(float));
  for (int64_t i = 0; i < kept.count; ++i) to[kept.list[i]] = from[kept.list[i]];
}

}  // namespace srr
