// One table of kernels for one instruction set: compiled once for each, with its own machine flags.
// SRR_NS names the set (portable, avx2, avx512), SRR_BYTES is its vector width.
#include "gemm.h"
#include "linear.h"
#include "rows.h"
#include "select.h"

#define SRR_TEXT(name) #name
#define SRR_NAME(name) SRR_TEXT(name)

extern "C" __attribute__((visibility("default"))) const srr::Table* srr_kernels() {
  using namespace SRR_NS;
  static const srr::Table table = {
      SRR_NAME(SRR_NS),
      W,
      PAIR,
      {dot<float>, dot<bf16>},
      {axpy<float>, axpy<bf16>},
      axpy<i8>,
      gemm,
      gemm_scratch,
      {widen_row<float>, widen_row<bf16>},
      {pack_row<float>, pack_row<bf16>},
      {finish_row<float>, finish_row<bf16>},
      {activate_any<float>, activate_any<bf16>},
      {multiply_row<float>, multiply_row<bf16>},
      keep_row,
      project_row,
      exp_sum,
      greatest,
      exp_row,
      add_rows,
      best,
  };
  return &table;
}

// Reads n floats as fast as memory allows, for bench to compare with: four streams, whose sum keeps it honest.
extern "C" __attribute__((visibility("default"))) float srr_read(const float* p, int64_t n) {
  using namespace SRR_NS;
  const int64_t each = n / 4 / PAIR * PAIR;
  vf a[4] = {}, b[4] = {};
  for (int64_t i = 0; i < each; i += PAIR)
    for (int s = 0; s < 4; ++s) {
      a[s] += load(p + s * each + i);
      b[s] += load(p + s * each + i + W);
    }
  vf total = {};
  for (int s = 0; s < 4; ++s) total += a[s] + b[s];
  return sum(total);
}
