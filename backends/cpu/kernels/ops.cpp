// The bindings: the namespace's CPU kernels, and the way past Python when no gradient is wanted.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include "op_attention.h"
#include "op_head.h"
#include "op_layer.h"
#include "op_linear.h"
#include "op_mlp.h"
#include "op_prefill.h"

namespace srr {

const Table* table_in_use = nullptr;

namespace {

bool wants_gradient(const c10::IValue& value) {
  if (value.isTensor()) return value.toTensor().defined() && value.toTensor().requires_grad();
  if (!value.isList()) return false;
  for (const c10::IValue& each : value.toListRef())
    if (each.isTensor() && each.toTensor().requires_grad()) return true;
  return false;
}

// The formula registered from Python stands at the alias key Autograd; asking it on every call would cost more than
// the op. Here it is asked only where a gradient will be wanted.
void autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  if (at::GradMode::is_enabled()) {
    const size_t count = op.schema().arguments().size();
    for (size_t i = stack->size() - count; i < stack->size(); ++i)
      if (wants_gradient((*stack)[i])) return op.callBoxedForDispatchKey(c10::DispatchKey::Autograd, *stack);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(srr, CPU, m) {
  m.impl("dense_linear", torch::CppFunction::makeFromBoxedFunction<&dense_linear>());
  m.impl("channel_linear", torch::CppFunction::makeFromBoxedFunction<&channel_linear>());
  m.impl("dense_mlp", torch::CppFunction::makeFromBoxedFunction<&dense_mlp>());
  m.impl("neuron_mlp", torch::CppFunction::makeFromBoxedFunction<&neuron_mlp>());
  m.impl("decode_attention", torch::CppFunction::makeFromBoxedFunction<&decode_attention>());
  m.impl("prefill_attention", torch::CppFunction::makeFromBoxedFunction<&prefill_attention>());
  m.impl("layer_gate", torch::CppFunction::makeFromBoxedFunction<&layer_gate>());
  m.impl("vocab_head", torch::CppFunction::makeFromBoxedFunction<&vocab_head>());
}

TORCH_LIBRARY_IMPL(srr, AutogradCPU, m) {
  for (const char* name :
       {"dense_linear", "channel_linear", "dense_mlp", "neuron_mlp", "decode_attention", "prefill_attention",
        "layer_gate", "vocab_head"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&autograd>());
}

}  // namespace srr

// Called before the first op: the kernels are a library of their own, one for each instruction set.
extern "C" __attribute__((visibility("default"))) void srr_use_table(const void* table) { srr::table_in_use = static_cast<const srr::Table*>(table); }
