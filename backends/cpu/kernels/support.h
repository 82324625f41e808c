// What every binding needs: the table in use, scratch memory, and tensors seen as plain weights and rows.
// Kernels are registered boxed: arguments are read off the interpreter's stack without copying tensor lists, and
// whatever a kernel does not take goes to the reference with the same stack.
#pragma once
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <memory>
#include <optional>
#include <vector>

#include "table.h"

namespace srr {

using at::Tensor;
using torch::jit::Stack;

extern const Table* table_in_use;

// Memory for one op call, kept by the thread for the next one. A Scope gives back what was taken inside it.
class Scratch {
 public:
  static Scratch& mine() {
    static thread_local Scratch scratch;
    return scratch;
  }
  template <class T>
  T* take(int64_t count) {
    const size_t bytes = (size_t(count) * sizeof(T) + 63) / 64 * 64;
    if (used_ + bytes > size_) grow(bytes);
    used_ += bytes;
    return reinterpret_cast<T*>(at_ + used_ - bytes);
  }

  class Scope {
   public:
    Scope() : scratch_(mine()), block_(scratch_.blocks_.size()), used_(scratch_.used_) { ++scratch_.depth_; }
    ~Scope() { scratch_.leave(block_, used_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    template <class T>
    T* take(int64_t count) {
      return scratch_.take<T>(count);
    }

   private:
    Scratch& scratch_;
    size_t block_, used_;
  };

 private:
  static constexpr size_t KEEP = 4 << 20;  // bytes a thread holds on to between calls
  struct Block {
    std::unique_ptr<char[]> memory;
    char* at;
    size_t size;
  };
  std::vector<Block> blocks_;
  char* at_ = nullptr;
  size_t size_ = 0, used_ = 0, total_ = 0;
  int depth_ = 0;

  void grow(size_t bytes) {
    const size_t size = std::max<size_t>(bytes, std::max<size_t>(total_, 1 << 16));
    auto memory = std::unique_ptr<char[]>(new char[size + 64]);
    char* at = memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64) % 64;
    blocks_.push_back({std::move(memory), at, size});
    at_ = at;
    size_ = size;
    used_ = 0;
    total_ += size;
  }
  void leave(size_t block, size_t used) {
    --depth_;
    if (blocks_.size() == block) {
      used_ = used;
    } else if (depth_ == 0) {
      // It took several blocks: next time one that holds them all, unless that is much.
      const size_t total = total_;
      blocks_.clear();
      at_ = nullptr;
      size_ = used_ = total_ = 0;
      if (total <= KEEP) {
        grow(total);
      }
    }
    // Inside an outer scope the newer blocks stay until that one leaves.
  }
};

inline int dtype_of(at::ScalarType type) { return type == at::kFloat ? F32 : type == at::kBFloat16 ? BF16 : -1; }
inline size_t size_of(int dtype) { return dtype == F32 ? 4 : 2; }
inline int64_t padded(int64_t n) {
  const int64_t p = table_in_use->padding;
  return (n + p - 1) / p * p + p;
}
inline const void* offset(const void* p, int64_t elements, int dtype) {
  return static_cast<const char*>(p) + elements * int64_t(size_of(dtype));
}

// The arguments of a call, by position; nothing is removed from the stack until `give`.
class Call {
 public:
  Call(const c10::OperatorHandle& op, Stack* stack)
      : op_(op), stack_(stack), first_(stack->size() - op.schema().arguments().size()) {}
  const c10::IValue& at(size_t i) const { return (*stack_)[first_ + i]; }
  const Tensor& tensor(size_t i) const { return at(i).toTensor(); }
  const Tensor* maybe(size_t i) const { return at(i).isNone() ? nullptr : &at(i).toTensor(); }
  void give(c10::IValue result) {
    stack_->erase(stack_->begin() + int64_t(first_), stack_->end());
    stack_->push_back(std::move(result));
  }
  void reference() const { op_.callBoxedForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd, *stack_); }

 private:
  const c10::OperatorHandle& op_;
  Stack* stack_;
  size_t first_;
};

inline bool plain(const Tensor& t) {
  return t.defined() && t.device().is_cpu() && t.layout() == at::kStrided && !t.is_conj() && !t.is_neg() &&
         t.numel() > 0;
}

// The last dimension as rows of x: [..., k] -> [rows][k], contiguous.
struct Rows {
  Tensor held;
  const void* data = nullptr;
  int64_t rows = 0, k = 0;
  int dtype = -1;

  bool read(const Tensor& x) {
    if (table_in_use == nullptr || !plain(x) || x.dim() < 1) return false;
    dtype = dtype_of(x.scalar_type());
    if (dtype < 0) return false;
    held = x.contiguous();
    data = held.const_data_ptr();
    k = x.size(-1);
    rows = x.numel() / k;
    return true;
  }
};

struct Weight {
  const void* data = nullptr;
  const void* bias = nullptr;
  int64_t n = 0, k = 0, ld = 0;
  bool input_major = false;

  bool read(const Tensor& w, const Tensor* b, int dtype, int64_t inputs) {
    if (!plain(w) || w.dim() != 2 || dtype_of(w.scalar_type()) != dtype || w.size(1) != inputs) return false;
    n = w.size(0);
    k = inputs;
    data = w.const_data_ptr();
    if (w.stride(1) == 1 && (w.stride(0) >= k || n == 1)) {
      ld = w.stride(0);
    } else if (w.stride(0) == 1 && (w.stride(1) >= n || k == 1)) {
      ld = w.stride(1);
      input_major = true;
    } else {
      return false;
    }
    if (b == nullptr) return true;
    if (!plain(*b) || b->dim() != 1 || b->size(0) != n || dtype_of(b->scalar_type()) != dtype) return false;
    if (b->stride(0) != 1 && n > 1) return false;
    bias = b->const_data_ptr();
    return true;
  }
};

// A fresh contiguous tensor shaped like x but for its last dimension.
inline Tensor fresh(const Tensor& x, int64_t last) {
  c10::SmallVector<int64_t, 6> sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = last;
  return Tensor(at::detail::empty_cpu(sizes, x.scalar_type()));
}

// Rows from float to the dtype of the result, with the bias: out [rows][ldo] from x [rows][ldx].
inline void finish(int dtype, const float* x, int64_t ldx, const void* bias, void* out, int64_t ldo, int64_t n,
                   int64_t rows) {
  for (int64_t m = 0; m < rows; ++m)
    table_in_use->finish[dtype](x + m * ldx, bias, const_cast<void*>(offset(out, m * ldo, dtype)), n);
}

}  // namespace srr
