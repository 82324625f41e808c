// srr::dense_mlp and srr::neuron_mlp.
#pragma once
#include <array>

#include "many_rows.h"

namespace srr {

// The order of the enum in math.h, and of ACTIVATIONS in srrc/ops/activation.py.
inline int activation_code(const std::string& name) {
  static const std::array<const char*, 8> names = {"silu", "gelu",       "gelu_tanh", "relu",
                                                   "relu2", "quick_gelu", "sigmoid",   "tanh"};
  for (size_t i = 0; i < names.size(); ++i)
    if (name == names[i]) return int(i);
  return -1;
}

struct Mlp {
  Rows x;
  bool gated = false;         // has a gate weight
  bool whole_up = false;      // gate 0 is the gate weight's alone
  Weight gate, up, down;
  int act = -1;
  const float *input_norm = nullptr, *neuron_norm = nullptr, *down_norm = nullptr;  // all null in dense_mlp
  const float* probes = nullptr;  // [3][k + 1], or null
  Gate gates[3] = {{-1, 0}, {-1, 0}, {-1, 0}};
  int64_t* counters = nullptr;

  bool read(const Call& call) {
    if (!x.read(call.tensor(0))) return false;
    gated = call.maybe(1) != nullptr;
    if (gated && !gate.read(call.tensor(1), call.maybe(2), x.dtype, x.k)) return false;
    if (!up.read(call.tensor(3), call.maybe(4), x.dtype, x.k) || (gated && gate.n != up.n)) return false;
    if (!down.read(call.tensor(5), call.maybe(6), x.dtype, up.n)) return false;
    act = activation_code(call.at(7).toStringRef());
    return act >= 0;
  }
  bool read_gates(const Call& call) {
    input_norm = floats(call.tensor(8), x.k);
    neuron_norm = floats(call.tensor(9), up.n);
    down_norm = floats(call.tensor(10), up.n);
    const float* records = floats(call.tensor(11), 6);
    counters = counts(call.tensor(12), 9);
    const Tensor* emphasis = call.maybe(13);
    probes = emphasis ? floats(*emphasis, 3 * (x.k + 1)) : nullptr;
    whole_up = gated && call.at(14).toBool();
    if (!input_norm || !neuron_norm || !down_norm || !records || !counters || (emphasis && !probes)) return false;
    for (int i = 0; i < 3; ++i) gates[i] = {records[2 * i], records[2 * i + 1]};
    return true;
  }
  const float* probe(int which) const { return probes ? probes + which * (x.k + 1) : nullptr; }
  bool relu() const { return act == 3 || act == 4; }
  void add(int which, int64_t offered, int64_t executed, int64_t failed) const {
    if (counters) count(counters + 3 * which, offered, executed, failed);
  }
};

// activate or multiply, row by row.
inline void activate(const Mlp& mlp, int rows, float* gate, int64_t ld, const void* gate_bias, const float* up,
                     int64_t ld_up) {
  for (int m = 0; m < rows; ++m)
    table_in_use->activate[mlp.x.dtype](mlp.act, gate + m * ld, gate_bias, up ? up + m * ld_up : nullptr, mlp.up.bias,
                                        mlp.up.n);
}

// The neurons of a row-major `up` that are kept, as rows of it; the others come out as zero.
inline void up_of_kept(Scratch::Scope& scope, Input& x, const Weight& up, const Kept& kept, Product& product) {
  product.ld = padded(up.n);
  product.out = scope.take<float>(x.rows * product.ld);
  memset(product.out, 0, size_t(x.rows * product.ld) * sizeof(float));
  x.prepare(scope, true, false);
  const Dot dot{up.data, up.ld, up.k, x.packed, x.ld_packed, x.rows, kept.list, true, product.out, product.ld};
  const int64_t grain = std::max<int64_t>(1, WORTH_A_THREAD / (up.k * int64_t(size_of(x.dtype))));
  at::parallel_for(0, kept.count, grain,
                   [&](int64_t begin, int64_t end) { table_in_use->dot[x.dtype](dot, begin, end); });
}

// Hidden values [rows][ld] (rounded as eager rounds them) and which of them `down` need read. Without gates a ReLU
// is one: neurons that it zeroed add nothing, so they need no row of a row-major `up` and none of `down`.
inline Kept hidden(Scratch::Scope& scope, const Mlp& mlp, Input& x, float*& values, int64_t& ld) {
  const int64_t neurons = mlp.up.n, offered = x.rows * neurons;
  const Gate zeroed{mlp.counters == nullptr && mlp.relu() ? 0.0f : -1.0f, 0.0f};
  const Gate neuron_gate = mlp.counters ? mlp.gates[1] : zeroed, down_gate = mlp.counters ? mlp.gates[2] : zeroed;
  const bool up_later = mlp.gated && neuron_gate.threshold >= 0 && !mlp.up.input_major;
  Product products[2] = {{mlp.gated ? mlp.gate : mlp.up}, {mlp.up}};
  Input whole = x.whole();
  Input& of_up = mlp.whole_up && x.kept.list ? whole : x;
  const bool apart = up_later || &of_up == &whole;
  multiply(scope, x, products, mlp.gated && !apart ? 2 : 1);
  if (apart && !up_later) multiply(scope, of_up, products + 1, 1);
  values = products[0].out;
  ld = products[0].ld;
  const auto more = [&](int which) {
    return emphases(scope, x.natural, x.ld, x.rows, mlp.probe(which), mlp.gates[which], x.k);
  };
  Kept alive{nullptr, neurons, 0};
  if (!mlp.gated) {
    activate(mlp, x.rows, values, ld, mlp.up.bias, nullptr, 0);
  } else if (!(neuron_gate.threshold >= 0)) {
    activate(mlp, x.rows, values, ld, mlp.gate.bias, products[1].out, products[1].ld);
    alive = decide(scope, values, ld, mlp.neuron_norm, neuron_gate, x.rows, neurons);
  } else {
    activate(mlp, x.rows, values, ld, mlp.gate.bias, nullptr, 0);
    alive = decide(scope, values, ld, mlp.neuron_norm, neuron_gate, x.rows, neurons, nullptr, more(1));
    if (up_later && alive.list)
      up_of_kept(scope, of_up, mlp.up, alive, products[1]);
    else if (up_later)
      multiply(scope, of_up, products + 1, 1);
    for (int m = 0; m < x.rows; ++m)
      table_in_use->multiply[x.dtype](values + m * ld, products[1].out + m * products[1].ld, mlp.up.bias, neurons);
  }
  if (mlp.gated) mlp.add(1, offered, x.rows * alive.count, alive.failed);
  const Kept kept = decide(scope, values, ld, mlp.down_norm, down_gate, x.rows, neurons, &alive, more(2));
  mlp.add(2, offered, x.rows * kept.count, kept.failed);
  return kept;
}

inline Tensor mlp_few_rows(const Mlp& mlp, const Tensor& like) {
  Scratch::Scope scope;
  Input x = Input::read(scope, mlp.x);
  if (mlp.input_norm) {
    const float* more = emphases(scope, x.natural, x.ld, x.rows, mlp.probe(0), mlp.gates[0], x.k);
    x.kept = decide(scope, x.natural, x.ld, mlp.input_norm, mlp.gates[0], x.rows, x.k, nullptr, more);
    mlp.add(0, x.rows * x.k, x.rows * x.kept.count, x.kept.failed);
  }
  Input h;
  float* values = nullptr;
  h.kept = hidden(scope, mlp, x, values, h.ld);
  h.natural = values;
  h.rows = x.rows;
  h.dtype = x.dtype;
  h.k = mlp.up.n;
  Product product{mlp.down};
  multiply(scope, h, &product, 1);
  Tensor out = fresh(like, mlp.down.n);
  finish(x.dtype, product.out, product.ld, mlp.down.bias, out.mutable_data_ptr(), mlp.down.n, mlp.down.n, x.rows);
  return out;
}

// Many rows: dense products; each row's gates zero what they drop.
inline Tensor mlp_many_rows(const Mlp& mlp, const Call& call) {
  Scratch::Scope scope;
  Rows x = mlp.x;
  const int dtype = x.dtype;
  const int64_t neurons = mlp.up.n, rows = x.rows;
  if (mlp.input_norm) {
    int64_t failed = 0;
    x.read(gated(mlp.x, mlp.input_norm, mlp.probe(0), mlp.gates[0], failed));
    mlp.add(0, rows * x.k, rows * x.k, failed);
  }
  const float* wide = widened(scope, x);
  const Rows& of_up = mlp.whole_up ? mlp.x : x;
  // Biases are added and rounded by the products themselves.
  Tensor up = linear(of_up.held, mlp.whole_up ? widened(scope, of_up) : wide, mlp.up, call.tensor(3), call.maybe(4));
  Tensor gate = mlp.gated ? linear(x.held, wide, mlp.gate, call.tensor(1), call.maybe(2)) : up;
  std::atomic<int64_t> neuron_fails{0}, down_fails{0};
  char* at_gate = static_cast<char*>(gate.mutable_data_ptr());
  const void* at_up = up.const_data_ptr();
  at::parallel_for(0, rows, 4, [&](int64_t begin, int64_t end) {
    Scratch::Scope outer;
    float *h = outer.take<float>(neurons), *u = outer.take<float>(neurons);
    float* whole = mlp.probes ? outer.take<float>(mlp.x.k) : nullptr;
    for (int64_t m = begin; m < end; ++m) {
      Scratch::Scope inner;
      void* row = at_gate + m * neurons * int64_t(size_of(dtype));
      table_in_use->widen[dtype](row, h, neurons);
      table_in_use->activate[dtype](mlp.act, h, nullptr, nullptr, nullptr, neurons);
      if (whole) table_in_use->widen[dtype](offset(mlp.x.data, m * mlp.x.k, dtype), whole, mlp.x.k);
      const auto more = [&](int which) {
        return emphases(inner, whole, mlp.x.k, 1, mlp.probe(which), mlp.gates[which], mlp.x.k);
      };
      Kept alive{nullptr, neurons, 0};
      if (mlp.gated) {
        if (mlp.neuron_norm)
          alive = decide(inner, h, neurons, mlp.neuron_norm, mlp.gates[1], 1, neurons, nullptr, more(1));
        neuron_fails += alive.failed;
        table_in_use->widen[dtype](offset(at_up, m * neurons, dtype), u, neurons);
        table_in_use->multiply[dtype](h, u, nullptr, neurons);
      }
      if (mlp.down_norm) {
        alive = decide(inner, h, neurons, mlp.down_norm, mlp.gates[2], 1, neurons, &alive, more(2));
        down_fails += alive.failed;
      }
      keep_only(alive, h, h, neurons);
      table_in_use->finish[dtype](h, nullptr, row, neurons);
    }
  });
  if (mlp.gated) mlp.add(1, rows * neurons, rows * neurons, neuron_fails);
  mlp.add(2, rows * neurons, rows * neurons, down_fails);
  Rows hidden;
  hidden.read(gate);
  return linear(gate, widened(scope, hidden), mlp.down, call.tensor(5), call.maybe(6));
}

inline void dense_mlp(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  Call call(op, stack);
  Mlp mlp;
  if (!mlp.read(call)) return call.reference();
  call.give(mlp.x.rows <= MAX_ROWS ? mlp_few_rows(mlp, call.tensor(0)) : mlp_many_rows(mlp, call));
}

inline void neuron_mlp(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  Call call(op, stack);
  Mlp mlp;
  if (!mlp.read(call) || !mlp.read_gates(call)) return call.reference();
  call.give(mlp.x.rows <= MAX_ROWS ? mlp_few_rows(mlp, call.tensor(0)) : mlp_many_rows(mlp, call));
}

}  // namespace srr
