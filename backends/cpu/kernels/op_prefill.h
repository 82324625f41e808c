// srr::prefill_attention: many queries under a mask. torch's kernel does the work, a block of queries at a time, on
// the run of keys that any query of the block sees: it would compute hidden scores like any others.
#pragma once
#include "op_attention.h"

namespace srr {

constexpr int64_t BLOCK_OF_QUERIES = 64;  // fewer make small products, more see keys that most of them do not

struct Span {
  int64_t first = std::numeric_limits<int64_t>::max(), last = 0;
  bool operator==(const Span& other) const { return first == other.first && last == other.last; }
};

// Eight hidden keys at once, from the end: most of a long cache is empty.
inline int64_t skip_hidden(const bool* row, int64_t first, int64_t last) {
  for (uint64_t eight; last - 8 >= first; last -= 8) {
    memcpy(&eight, row + last - 8, 8);
    if (eight != 0) break;
  }
  return last;
}

// Keys of a row whose value is above a dtype's lowest, or, where there is none, above -inf: as `flag_row` has it.
template <class T, class F>
inline void widen_span(Span& span, const T* row, int64_t stride, int64_t keys, F value) {
  for (const float floor : {LOWEST, HIDDEN}) {
    int64_t first = 0, last = keys;
    while (first < keys && value(row[first * stride]) <= floor) ++first;
    if (first == keys) continue;
    if constexpr (std::is_same_v<T, bool>)
      if (stride == 1) last = skip_hidden(row, first, last);
    while (value(row[(last - 1) * stride]) <= floor) --last;
    span.first = std::min(span.first, first);
    span.last = std::max(span.last, last);
    return;
  }
}

// The keys between the first and the last one that a query of from..to sees.
inline Span span_of(const Attention& a, int64_t from, int64_t to) {
  const Mask& mask = a.mask;
  const int64_t stride = mask.strides[3], keys = a.keys;
  Span span;
  for (int64_t b = 0; b < (mask.strides[0] ? a.batch : 1); ++b)
    for (int64_t h = 0; h < (mask.strides[1] ? a.heads : 1); ++h)
      for (int64_t q = from; q < (mask.strides[2] ? to : from + 1); ++q) {
        const int64_t row = mask.at(b, h, q);
        if (mask.type == at::kBool)
          widen_span(span, static_cast<const bool*>(mask.data) + row, stride, keys,
                     [](bool x) { return x ? 0.0f : HIDDEN; });
        else if (mask.type == at::kFloat)
          widen_span(span, static_cast<const float*>(mask.data) + row, stride, keys, [](float x) { return x; });
        else
          widen_span(span, static_cast<const uint16_t*>(mask.data) + row, stride, keys, bf16_to_float);
      }
  return span.last == 0 ? Span{0, keys} : span;  // nobody sees anything: torch knows what that is
}

inline void prefill_attention(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  Call call(op, stack);
  Attention a;
  if (!a.read_tensors(call) || !a.mask.read(call.maybe(3), a.q, a.keys)) return call.reference();
  const Tensor& mask = call.tensor(3);
  Tensor out = Tensor(at::detail::empty_cpu({a.batch, a.queries, a.heads, a.width}, a.q.scalar_type())).transpose(1, 2);
  const auto block_end = [&](int64_t from) { return std::min(a.queries, from + BLOCK_OF_QUERIES); };
  Span span = span_of(a, 0, block_end(0)), next;
  for (int64_t from = 0, to; from < a.queries; from = to, span = next) {
    for (to = block_end(from); to < a.queries; to = block_end(to)) {
      next = span_of(a, to, block_end(to));
      if (!(next == span)) break;
    }
    const int64_t keys = span.last - span.first;
    const auto part = [&](const Tensor& t, int64_t dim, int64_t at, int64_t count) {
      return t.size(dim) == 1 ? t : t.narrow(dim, at, count);
    };
    const Tensor rows = mask.dim() < 2 ? mask : part(mask, -2, from, to - from);
    const Tensor y = at::scaled_dot_product_attention(
        a.q.narrow(2, from, to - from), a.k.narrow(2, span.first, keys), a.v.narrow(2, span.first, keys),
        part(rows, -1, span.first, keys), 0.0, false, call.at(4).toDouble(), a.heads != a.kv_heads);
    if (to - from == a.queries && y.strides() == out.strides())
      out = y;
    else
      out.narrow(2, from, to - from).copy_(y);
  }
  call.give(std::move(out));
}

}  // namespace srr
