// What every instruction set offers: one table of plain functions, no torch types. `dtype` 0 is float, 1 bfloat16.
#pragma once
#include <cstdint>

namespace srr {

enum { F32 = 0, BF16 = 1, DTYPES = 2 };
constexpr int MAX_ROWS = 8;  // as srrc/ops/gate.py

// Rows of x times rows of a row-major weight (or keys of a cache): out[m][n] = sum_k x[m][k] w[n][k].
struct Dot {
  const void* w;
  int64_t ldw;          // elements from one row to the next
  int64_t k;
  const float* x;       // packed by `pack`, [rows][ldx]
  int64_t ldx;
  int rows;             // 1..MAX_ROWS
  const int32_t* list;  // rows of w to take, or null for all of them
  bool scatter;         // with a list: write out[m][list[i]] rather than out[m][i]
  float* out;
  int64_t ldo;
};

// The sum over the kept rows of an input-major weight: out[m][n] = sum_i coef[m][i] w[list[i]][n].
struct Axpy {
  const void* w;
  int64_t ldw;
  int64_t n;            // columns of w
  const float* coef;    // [rows][ldc]
  int64_t ldc;
  int rows;
  const int32_t* list;  // null: rows 0..count-1
  int64_t count;
  float* out;           // [rows][ldo], ldo >= padded(n)
  float* part;          // as out; only touched for float weights
  int64_t ldo;
};

// bf16 only: out = x @ w^T + bias for many rows, on machines whose own bf16 products are slow.
struct Gemm {
  const float* x;       // [m][k]
  int64_t m, n, k;
  const void* w;
  int64_t ldw;
  bool input_major;
  const void* bias;     // bf16 [n] or null
  void* out;            // bf16 [m][ldo]
  int64_t ldo;
};

struct Table {
  const char* name;
  int width;                 // floats in a vector
  int64_t padding;           // elements: lengths are rounded up to it, plus as much again for `out` of axpy
  // Each kernel takes a range of its output: rows of w, columns of w, columns of out.
  void (*dot[DTYPES])(const Dot&, int64_t begin, int64_t end);
  void (*axpy[DTYPES])(const Axpy&, int64_t begin, int64_t end);
  void (*axpy_int8)(const Axpy&, int64_t begin, int64_t end);  // n >= padding; `coef` holds the scales
  void (*gemm)(const Gemm&, float* scratch, int64_t begin, int64_t end);
  int64_t (*gemm_scratch)(int64_t m);
  // x of any dtype to float: natural order, and the order that `dot` wants (zero padded).
  void (*widen[DTYPES])(const void* x, float* out, int64_t n);
  void (*pack[DTYPES])(const float* x, float* out, int64_t n);
  // out = round(x + bias), bias of the same dtype or null.
  void (*finish[DTYPES])(const float* x, const void* bias, void* out, int64_t n);
  // hidden = round(act(round(gate + bias)) * round(up + bias)); up null: round(act(gate)). In place on gate.
  void (*activate[DTYPES])(int act, float* gate, const void* gate_bias, const float* up, const void* up_bias, int64_t n);
  // values *= other, rounded; both already rounded.
  void (*multiply[DTYPES])(float* values, const float* up, const void* up_bias, int64_t n);
  // kept[i] |= -1 unless |x[i]| * norm[i] <= threshold (norm null: ones); returns how many x alone keeps.
  int64_t (*keep)(const float* x, const float* norm, float threshold, int64_t n, int32_t* kept);
  // sums[0] = sum_i x[i] weight[i]; sums[1] = sum_i x[i] x[i].
  void (*project)(const float* x, const float* weight, int64_t n, float* sums);
  // Softmax pieces: p = exp(x - max) in place, returns the sum; greatest of x.
  float (*exp_sum)(float* x, float max, int64_t n);
  float (*greatest)(const float* x, int64_t n);
  void (*exp)(float* x, int64_t n);
  // values += more; whether any sum is NaN.
  bool (*add)(float* values, const float* more, int64_t n);
  // The places of the `count` best values and of all that equal the last of them, ascending; returns how many.
  // No value may be NaN. list: [n]; scratch: [n + padding].
  int64_t (*best)(const float* values, int64_t n, int64_t count, int32_t* list, int32_t* scratch);
};

}  // namespace srr
