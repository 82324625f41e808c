// srr::decode_attention: few queries against a cache of keys, in float, two passes over the scores.
// Keys that no query of a group sees are neither read nor scored.
#pragma once
#include <ATen/ops/scaled_dot_product_attention.h>

#include <limits>

#include "linears.h"

namespace srr {

constexpr float HIDDEN = -std::numeric_limits<float>::infinity();
// Masks made of a dtype's lowest value instead of -inf: beside any ordinary score they weigh exactly nothing.
constexpr float LOWEST = -1e37f;

inline float bf16_to_float(uint16_t x) {
  const uint32_t u = uint32_t(x) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

// The mask as one row of floats or bools for each (batch, head, query), never materialised.
struct Mask {
  const void* data = nullptr;
  at::ScalarType type = at::kBool;
  int64_t strides[4] = {0, 0, 0, 0};

  bool read(const Tensor* mask, const Tensor& q, int64_t keys) {
    if (mask == nullptr) return true;
    const int64_t sizes[4] = {q.size(0), q.size(1), q.size(2), keys};
    type = mask->scalar_type();
    if (!plain(*mask) || mask->dim() > 4 || (type != at::kBool && dtype_of(type) < 0)) return false;
    data = mask->const_data_ptr();
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t d = i - (4 - mask->dim());
      if (d < 0) continue;
      if (mask->size(d) != 1 && mask->size(d) != sizes[i]) return false;
      strides[i] = mask->size(d) == 1 ? 0 : mask->stride(d);
    }
    return true;
  }
  int64_t at(int64_t b, int64_t h, int64_t q) const { return b * strides[0] + h * strides[1] + q * strides[2]; }
  float bias(int64_t row, int64_t key) const {
    const int64_t i = row + key * strides[3];
    if (type == at::kBool) return static_cast<const bool*>(data)[i] ? 0.0f : HIDDEN;
    if (type == at::kFloat) return static_cast<const float*>(data)[i];
    return bf16_to_float(static_cast<const uint16_t*>(data)[i]);
  }
};

struct Attention {
  Tensor q, k, v;
  Mask mask;
  float scale = 1;
  bool causal = false;
  int dtype = -1;
  int64_t batch = 0, heads = 0, queries = 0, depth = 0, kv_heads = 0, keys = 0, width = 0, group = 0;

  bool read_tensors(const Call& call) {
    if (table_in_use == nullptr) return false;
    q = call.tensor(0), k = call.tensor(1), v = call.tensor(2);
    for (const Tensor* t : {&q, &k, &v}) {
      if (!plain(*t) || t->dim() != 4) return false;
      if (dtype_of(t->scalar_type()) != dtype_of(q.scalar_type())) return false;
    }
    dtype = dtype_of(q.scalar_type());
    batch = q.size(0), heads = q.size(1), queries = q.size(2), depth = q.size(3);
    kv_heads = k.size(1), keys = k.size(2), width = v.size(3);
    if (dtype < 0 || heads % kv_heads != 0) return false;
    group = heads / kv_heads;
    return k.size(0) == batch && v.size(0) == batch && v.size(1) == kv_heads && v.size(2) == keys &&
           k.size(3) == depth;
  }
  bool read(const Call& call) {
    if (!read_tensors(call) || queries > MAX_ROWS) return false;
    if (k.stride(3) != 1 && depth > 1) k = k.contiguous();
    if (v.stride(3) != 1 && width > 1) v = v.contiguous();
    if (!mask.read(call.maybe(3), q, keys)) return false;
    scale = float(call.at(4).toDouble());
    causal = call.at(5).toBool();
    return !(causal && mask.data);
  }
};

// The keys that any query of a head's group sees: a run, or a list.
struct Seen {
  const int32_t* list = nullptr;
  int64_t first = 0, count = 0;
};

// flags[s] |= mask[s] > floor (or NaN), where floor is LOWEST unless the row has nothing above it.
template <class T, class F>
inline void flag_row(const T* mask, int64_t stride, int64_t keys, uint8_t* flags, F value) {
  for (const float floor : {LOWEST, HIDDEN}) {
    uint8_t any = 0;
    if (stride == 1)
      for (int64_t s = 0; s < keys; ++s) any |= flags[s] |= uint8_t(!(value(mask[s]) <= floor));
    else
      for (int64_t s = 0; s < keys; ++s) any |= flags[s] |= uint8_t(!(value(mask[s * stride]) <= floor));
    if (any) return;
  }
}

inline Seen gather(Scratch::Scope& scope, const uint8_t* flags, int64_t keys) {
  int64_t first = 0, last = keys, count = 0;
  while (first < keys && !flags[first]) ++first;
  while (last > first && !flags[last - 1]) --last;
  for (int64_t s = first; s < last; ++s) count += flags[s];
  if (count == last - first) return {nullptr, first, count};
  int32_t* list = scope.take<int32_t>(count + 1);
  for (int64_t s = first, at = 0; s < last; ++s) {
    list[at] = int32_t(s);
    at += flags[s];
  }
  return {list, 0, count};
}

// For queries of batch b and key-value head h (of every head, where the mask is the same for all).
inline Seen seen_keys(Scratch::Scope& scope, const Attention& a, int64_t b, int64_t h) {
  const int64_t keys = a.causal ? std::min(a.keys, a.queries) : a.keys, stride = a.mask.strides[3];
  if (a.mask.data == nullptr) return {nullptr, 0, keys};
  const int64_t per_head = a.mask.strides[1] == 0 ? 1 : a.group, per_query = a.mask.strides[2] == 0 ? 1 : a.queries;
  const uint8_t* bools = static_cast<const uint8_t*>(a.mask.data);
  if (a.mask.type == at::kBool && per_head * per_query == 1 && stride == 1)
    return gather(scope, bools + a.mask.at(b, h * a.group, 0), keys);
  uint8_t *flags = scope.take<uint8_t>(keys), *row_flags = scope.take<uint8_t>(keys);
  memset(flags, 0, size_t(keys));
  for (int64_t g = 0; g < per_head; ++g)
    for (int64_t q = 0; q < per_query; ++q) {
      const int64_t row = a.mask.at(b, h * a.group + g, q);
      if (a.mask.type == at::kBool) {
        for (int64_t s = 0; s < keys; ++s) flags[s] |= bools[row + s * stride];
        continue;
      }
      memset(row_flags, 0, size_t(keys));
      if (a.mask.type == at::kFloat)
        flag_row(static_cast<const float*>(a.mask.data) + row, stride, keys, row_flags, [](float x) { return x; });
      else
        flag_row(static_cast<const uint16_t*>(a.mask.data) + row, stride, keys, row_flags, bf16_to_float);
      for (int64_t s = 0; s < keys; ++s) flags[s] |= row_flags[s];
    }
  return gather(scope, flags, keys);
}

// One key-value head's share of the keys: for each of its `group * queries` rows the greatest score, the sum of
// exponentials and the weighted sum of values, to be joined with the other shares.
struct Share {
  float *max, *sum, *values;  // [rows], [rows], [rows][ld]
  int64_t ld;
};

inline void attend(const Attention& a, int64_t b, int64_t h, const Seen& seen, int part, int parts,
                   const Share& share) {
  Scratch::Scope scope;
  const int64_t from = seen.count * part / parts, count = seen.count * (part + 1) / parts - from;
  const int32_t* list = seen.list ? seen.list + from : nullptr;
  const int64_t first = seen.first + from;
  const int64_t rows = a.group * a.queries, ld_q = padded(a.depth), ld_s = padded(count);
  float *queries = scope.take<float>(rows * ld_q), *scores = scope.take<float>(rows * ld_s);
  float* wide = scope.take<float>(a.depth);
  const Tensor& q = a.q;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = b * q.stride(0) + (h * a.group + r / a.queries) * q.stride(1) + r % a.queries * q.stride(2);
    const void* row = offset(q.const_data_ptr(), at, a.dtype);
    if (q.stride(3) == 1 || a.depth == 1)
      table_in_use->widen[a.dtype](row, wide, a.depth);
    else
      for (int64_t d = 0; d < a.depth; ++d)
        table_in_use->widen[a.dtype](offset(row, d * q.stride(3), a.dtype), wide + d, 1);
    table_in_use->pack[a.dtype](wide, queries + r * ld_q, a.depth);
  }
  // A run of keys is a matrix of its own; a list picks rows out of the whole cache.
  const auto rows_of = [&](const Tensor& t) {
    return offset(t.const_data_ptr(), b * t.stride(0) + h * t.stride(1) + (list ? 0 : first * t.stride(2)), a.dtype);
  };
  const void *keys = rows_of(a.k), *values = rows_of(a.v);
  float* spare = scope.take<float>(MAX_ROWS * share.ld);
  for (int64_t r = 0; r < rows; r += MAX_ROWS) {
    const int now = int(std::min<int64_t>(MAX_ROWS, rows - r));
    float* s = scores + r * ld_s;
    table_in_use->dot[a.dtype](
        {keys, a.k.stride(2), a.depth, queries + r * ld_q, ld_q, now, list, false, s, ld_s}, 0, count);
    for (int64_t i = 0; i < now; ++i) {
      const int64_t head = h * a.group + (r + i) / a.queries, query = (r + i) % a.queries;
      float* row = s + i * ld_s;
      const int64_t mask_row = a.mask.at(b, head, query);
      for (int64_t j = 0; j < count; ++j) row[j] *= a.scale;
      if (a.mask.data && !(a.mask.type == at::kBool && rows == a.group && a.mask.strides[1] == 0))
        for (int64_t j = 0; j < count; ++j) row[j] += a.mask.bias(mask_row, list ? list[j] : first + j);
      if (a.causal)
        for (int64_t j = std::max<int64_t>(0, query + 1 - first); j < count; ++j) row[j] = HIDDEN;
      const float max = table_in_use->greatest(row, count);
      share.max[r + i] = max;
      // Nothing seen: e^(-inf) is 0 whatever is taken off, but for -inf itself.
      share.sum[r + i] = table_in_use->exp_sum(row, max == HIDDEN ? 0.0f : max, count);
    }
    table_in_use->axpy[a.dtype]({values, a.v.stride(2), a.width, s, ld_s, now, list, count,
                                 share.values + r * share.ld, spare, share.ld},
                                0, a.width);
  }
}

// Shares of one head joined, and written: out [rows of this head][width].
inline void join(const Attention& a, const Share* shares, int parts, void* out, float* row) {
  const int64_t rows = a.group * a.queries;
  for (int64_t r = 0; r < rows; ++r) {
    float max = HIDDEN, sum = 0;
    for (int p = 0; p < parts; ++p)
      if (!(shares[p].max[r] <= max)) max = shares[p].max[r];
    for (int64_t d = 0; d < a.width; ++d) row[d] = 0;
    for (int p = 0; p < parts; ++p) {
      const float weight = parts == 1 || shares[p].max[r] == max ? 1.0f : std::exp(shares[p].max[r] - max);
      sum += weight * shares[p].sum[r];
      for (int64_t d = 0; d < a.width; ++d) row[d] += weight * shares[p].values[r * shares[p].ld + d];
    }
    // Every key hidden: zeros, as torch's safe softmax gives.
    const float scale = max == HIDDEN ? 0.0f : 1.0f / sum;
    for (int64_t d = 0; d < a.width; ++d) row[d] *= scale;
    if (max == HIDDEN) memset(row, 0, size_t(a.width) * sizeof(float));
    table_in_use->finish[a.dtype](row, nullptr, const_cast<void*>(offset(out, r * a.width, a.dtype)), a.width);
  }
}

inline void decode_attention(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  Call call(op, stack);
  Attention a;
  if (!a.read(call)) return call.reference();
  Tensor out = fresh(a.q, a.width);
  const int64_t items = a.batch * a.kv_heads, rows = a.group * a.queries, threads = at::get_num_threads();
  const int64_t bytes = a.keys * (a.depth + a.width) * int64_t(size_of(a.dtype));
  const bool alone = threads == 1 || items * bytes < 2 * WORTH_A_THREAD;
  // Enough shares for every thread to have the same work.
  const int parts = alone || items % threads == 0 ? 1 : int(std::min<int64_t>(threads, 1 + a.keys / 128));
  Scratch::Scope scope;
  Share* shares = scope.take<Share>(items * parts);
  const int64_t ld = padded(a.width);
  for (int64_t i = 0; i < items * parts; ++i)
    shares[i] = {scope.take<float>(rows), scope.take<float>(rows), scope.take<float>(rows * ld), ld};
  const int64_t alike = a.mask.strides[1] == 0 ? a.kv_heads : 1;  // items that see the same keys
  Seen* seen = scope.take<Seen>(items / alike);
  for (int64_t i = 0; i < items / alike; ++i)
    seen[i] = seen_keys(scope, a, i * alike / a.kv_heads, i * alike % a.kv_heads);
  const int64_t grain = alone ? items * parts : 1;
  at::parallel_for(0, items * parts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t item = i / parts;
      attend(a, item / a.kv_heads, item % a.kv_heads, seen[item / alike], int(i % parts), parts, shares[i]);
    }
  });
  float* row = scope.take<float>(a.width);
  for (int64_t i = 0; i < items; ++i)
    join(a, shares + i * parts, parts,
         const_cast<void*>(offset(out.mutable_data_ptr(), i * rows * a.width, a.dtype)), row);
  call.give(std::move(out));
}

}  // namespace srr
