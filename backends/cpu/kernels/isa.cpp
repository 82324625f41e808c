// One table of kernels for one instruction set: compiled once for each, with its own machine flags.
// SRR_NS names the set (portable, avx2, avx512), SRR_BYTES is its vector width.
#include "gemm.h"
#include "linear.h"
#include "rows.h"

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
      gemm,
      gemm_scratch,
      {widen_row<float>, widen_row<bf16>},
      {pack_row<float>, pack_row<bf16>},
      {finish_row<float>, finish_row<bf16>},
      {activate_any<float>, activate_any<bf16>},
      {multiply_row<float>, multiply_row<bf16>},
      exp_sum,
      greatest,
      exp_row,
  };
  return &table;
}
