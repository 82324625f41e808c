// srr::vocab_head: coarse logits for every token, exact ones for the blocks that can hold the next.
#pragma once
#include "many_rows.h"

namespace srr {

struct Head {
  Rows x;
  Weight weight, coarse_in, coarse_out;
  Gate gate{-1, 0};
  int64_t* counters = nullptr;
  int64_t block = 1, blocks = 0;

  bool read(const Call& call) {
    if (!x.read(call.tensor(0)) || !weight.read(call.tensor(1), call.maybe(2), x.dtype, x.k)) return false;
    const Tensor &in = call.tensor(3), &out = call.tensor(4);
    if (!coarse_in.read(in, nullptr, x.dtype, x.k)) return false;
    if (!coarse_out.read(out, nullptr, x.dtype, coarse_in.n) || coarse_out.n != weight.n) return false;
    const float* record = floats(call.tensor(5), 2);
    counters = counts(call.tensor(6), 3);
    block = call.at(7).toInt();
    if (!record || !counters || block < 1) return false;
    gate = {record[0], record[1]};
    blocks = (weight.n + block - 1) / block;
    return true;
  }
};

// Coarse logits (bias included) of up to MAX_ROWS rows: [rows][ld] in scratch.
inline float* coarse_logits(Scratch::Scope& scope, const Head& head, Input& x, int64_t& ld) {
  Product code{head.coarse_in};
  multiply(scope, x, &code, 1);
  Input z;
  z.rows = x.rows;
  z.dtype = x.dtype;
  z.k = z.kept.count = head.coarse_in.n;
  z.natural = code.out;
  z.ld = code.ld;
  Product logits{head.coarse_out};
  multiply(scope, z, &logits, 1);
  ld = logits.ld;
  if (head.weight.bias)
    for (int m = 0; m < x.rows; ++m) {
      float* bias = scope.take<float>(head.weight.n);
      table_in_use->widen[x.dtype](head.weight.bias, bias, head.weight.n);
      for (int64_t n = 0; n < head.weight.n; ++n) logits.out[m * ld + n] += bias[n];
    }
  return logits.out;
}

inline Kept choose_blocks(Scratch::Scope& scope, const Head& head, const float* coarse, int64_t ld, int rows) {
  if (!(head.gate.threshold >= 0)) return decide(scope, nullptr, 0, nullptr, head.gate, rows, head.blocks);
  float* score = scope.take<float>(rows * head.blocks);
  for (int m = 0; m < rows; ++m) {
    float* row = score + m * head.blocks;
    const float* logits = coarse + m * ld;
    for (int64_t b = 0; b < head.blocks; ++b) {
      float best = logits[b * head.block];
      for (int64_t i = b * head.block + 1; i < std::min(head.weight.n, (b + 1) * head.block); ++i)
        if (!(logits[i] <= best)) best = logits[i];
      row[b] = best;
    }
    const float top = table_in_use->greatest(row, head.blocks);
    for (int64_t b = 0; b < head.blocks; ++b) row[b] -= top;
    table_in_use->exp(row, head.blocks);
  }
  return decide(scope, score, head.blocks, nullptr, head.gate, rows, head.blocks);
}

// The tokens of the kept blocks, as rows of the weight.
inline Kept tokens_of(Scratch::Scope& scope, const Head& head, const Kept& kept) {
  int32_t* list = scope.take<int32_t>(kept.count * head.block);
  int64_t count = 0;
  for (int64_t i = 0; i < kept.count; ++i) {
    const int64_t first = kept.list[i] * head.block;
    for (int64_t n = first; n < std::min(head.weight.n, first + head.block); ++n) list[count++] = int32_t(n);
  }
  return {list, count, 0};
}

inline void head_few_rows(const Head& head, const Rows& rows, Tensor& out) {
  Scratch::Scope scope;
  Input x = Input::read(scope, rows);
  int64_t ld = 0;
  const bool everything = !(head.gate.threshold >= 0);
  // A threshold under zero keeps every block: the coarse logits are of no use then.
  float* coarse = everything ? nullptr : coarse_logits(scope, head, x, ld);
  const Kept kept = choose_blocks(scope, head, coarse, ld, x.rows);
  count(head.counters, x.rows * head.blocks, x.rows * kept.count, kept.failed);
  const void* bias = head.weight.bias;
  if (kept.list == nullptr || head.weight.input_major) {
    Product exact{head.weight};
    multiply(scope, x, &exact, 1);
    if (kept.list == nullptr) {
      finish(x.dtype, exact.out, exact.ld, bias, out.mutable_data_ptr(), head.weight.n, head.weight.n, x.rows);
      return;
    }
    const Kept tokens = tokens_of(scope, head, kept);
    for (int m = 0; m < x.rows; ++m)
      for (int64_t i = 0; i < tokens.count; ++i)
        coarse[m * ld + tokens.list[i]] = exact.out[m * exact.ld + tokens.list[i]];
  } else {
    const Kept tokens = tokens_of(scope, head, kept);
    x.prepare(scope, true, false);
    const Dot dot{head.weight.data, head.weight.ld, x.k, x.packed, x.ld_packed, x.rows, tokens.list, true, coarse, ld};
    const int64_t grain = std::max<int64_t>(1, WORTH_A_THREAD / (x.k * int64_t(size_of(x.dtype))));
    at::parallel_for(0, tokens.count, grain,
                     [&](int64_t begin, int64_t end) { table_in_use->dot[x.dtype](dot, begin, end); });
  }
  if (bias) {
    const Kept tokens = tokens_of(scope, head, kept);
    float* wide = scope.take<float>(head.weight.n);
    table_in_use->widen[x.dtype](bias, wide, head.weight.n);
    for (int m = 0; m < x.rows; ++m)
      for (int64_t i = 0; i < tokens.count; ++i) coarse[m * ld + tokens.list[i]] += wide[tokens.list[i]];
  }
  finish(x.dtype, coarse, ld, nullptr, out.mutable_data_ptr(), head.weight.n, head.weight.n, x.rows);
}

// Many rows: exact logits for all, then each row's own blocks decide which of them stay.
inline Tensor head_many_rows(const Head& head, const Call& call) {
  Scratch::Scope scope;
  Tensor out = linear(head.x.held, widened(scope, head.x), head.weight, call.tensor(1), call.maybe(2));
  const int64_t rows = head.x.rows, vocab = head.weight.n;
  int64_t failed = 0;
  for (int64_t first = 0; first < rows; first += MAX_ROWS) {
    Scratch::Scope inner;
    Rows some = head.x;
    some.rows = std::min<int64_t>(MAX_ROWS, rows - first);
    some.data = offset(head.x.data, first * head.x.k, head.x.dtype);
    Input x = Input::read(inner, some);
    int64_t ld = 0;
    float* coarse = coarse_logits(inner, head, x, ld);
    float* exact = inner.take<float>(vocab);
    for (int m = 0; m < x.rows; ++m) {
      Scratch::Scope row_scope;
      const Kept kept = choose_blocks(row_scope, head, coarse + m * ld, ld, 1);
      failed += kept.failed;
      if (kept.list == nullptr) continue;
      const Kept tokens = tokens_of(row_scope, head, kept);
      void* row = const_cast<void*>(offset(out.mutable_data_ptr(), (first + m) * vocab, x.dtype));
      table_in_use->widen[x.dtype](row, exact, vocab);
      for (int64_t i = 0; i < tokens.count; ++i) coarse[m * ld + tokens.list[i]] = exact[tokens.list[i]];
      finish(x.dtype, coarse + m * ld, ld, nullptr, row, vocab, vocab, 1);
    }
  }
  count(head.counters, rows * head.blocks, rows * head.blocks, failed);
  return out;
}

inline void vocab_head(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  Call call(op, stack);
  Head head;
  if (!head.read(call)) return call.reference();
  if (head.x.rows > MAX_ROWS) return call.give(head_many_rows(head, call));
  Tensor out = fresh(call.tensor(0), head.weight.n);
  head_few_rows(head, head.x, out);
  call.give(std::move(out));
}

}  // namespace srr
