// SPDX-License-Identifier: Apache-2.0
/// \file ggml's product with a weight, `GGML_OP_MUL_MAT`, computed by skim. Needs ggml.h alone, which the host brings, and an
/// operation: `cpu/linear.hpp`'s or, for any processor, `cpu/dispatch.hpp`'s. Allocates.
///
///   skim::ggml_linear<skim::cpu::any_linear> linear;      // one per context
///   skim::check(skim::ggml_product_of(*node))             // when the graph is built: what is refused stays with the host
///   linear.compute(skim::ggml_product_of(*node), threads)
#pragma once

#include <skim/buffer.hpp>
#include <skim/interop/ggml_operands.hpp>
#include <skim/linear.hpp>

namespace skim { inline namespace v0_2 {

/// Operands of the node. weight [n_in, n_out] of any type that is stored or quantised, x [n_in, M, ...], out [n_out, M, ...],
/// ggml's order of axes.
struct ggml_product {
  const ggml_tensor *weight = nullptr, *x = nullptr;
  ggml_tensor* out = nullptr;
};
inline ggml_product ggml_product_of(ggml_tensor& node) {
  return {node.src[0], node.src[1], &node};
}

namespace detail {

/// Of matrix [c, b] of x, by `count` outputs from `first` on; `weight` is their first row, as it is computed on.
inline linear_args ggml_linear_args(const ggml_product& p, const ggml_tensor& weight, std::int64_t first,
                                    std::int64_t count, std::int64_t b = 0, std::int64_t c = 0) {
  const auto rows_of = [&](const ggml_tensor& t) {
    char* const data = static_cast<char*>(t.data);
    const std::size_t at = static_cast<std::size_t>(b) * t.nb[2] + static_cast<std::size_t>(c) * t.nb[3];
    return tensor_view<void, 2>(data ? data + at : data, {t.ne[1], t.ne[0]}, {ggml_stride(t, 1), 1},
                                element_of_ggml(t.type));
  };
  linear_args args;
  args.x = rows_of(*p.x);
  args.weight = {weight.data, {count, weight.ne[0]}, {ggml_stride(weight, 1), 1}, element_of_ggml(weight.type)};
  args.out = rows_of(*p.out);
  args.out.data = args.out.data ? args.out.at(0, first) : nullptr;
  args.out.extents[1] = count;
  return args;
}

/// All axes, the outermost first.
inline tensor_view<void, 4> ggml_whole(const ggml_tensor& t) {
  return {t.data,
          {t.ne[3], t.ne[2], t.ne[1], t.ne[0]},
          {ggml_stride(t, 3), ggml_stride(t, 2), ggml_stride(t, 1), 1},
          element_of_ggml(t.type)};
}

}  // namespace detail

/// Whether skim takes the node: types, strides, widths; one weight for all matrices of x. Reads no data.
inline report check(const ggml_product& p) {
  using namespace detail;
  if (report r = check_ggml_tensor(p.weight, "weight", true); !r) return r;
  if (report r = check_ggml_tensor(p.x, "x"); !r) return r;
  if (report r = check_ggml_tensor(p.out, "out"); !r) return r;
  if (p.weight->ne[2] != 1) return fault(status::unsupported, "weight.ne[2]", p.weight->ne[2], 1);
  if (p.weight->ne[3] != 1) return fault(status::unsupported, "weight.ne[3]", p.weight->ne[3], 1);
  if (report r = check_range("x.ne[2]", p.x->ne[2], 0, largest_index, status::bad_extent); !r) return r;
  if (report r = check_range("x.ne[3]", p.x->ne[3], 0, largest_index, status::bad_extent); !r) return r;
  if (p.out->ne[0] != p.weight->ne[1]) return fault(status::bad_extent, "out.ne[0]", p.out->ne[0], p.weight->ne[1]);
  if (p.out->ne[2] != p.x->ne[2]) return fault(status::bad_extent, "out.ne[2]", p.out->ne[2], p.x->ne[2]);
  if (p.out->ne[3] != p.x->ne[3]) return fault(status::bad_extent, "out.ne[3]", p.out->ne[3], p.x->ne[3]);
  const linear_args args = ggml_linear_args(p, ggml_computed(*p.weight, nullptr), 0, p.weight->ne[1]);
  if (report r = check(args, pointers::ignored); !r) return r;
  if (report r = check_tensor(ggml_whole(*p.x), "x", pointers::ignored); !r) return r;
  if (report r = check_tensor(ggml_whole(*p.out), "out", pointers::ignored); !r) return r;
  return check_apart(ggml_whole(*p.out), "out");
}

/// Computes nodes by an operation, `cpu::linear<...>` or `cpu::any_linear`. A weight of ggml's quantised types other than Q8_0
/// is widened to f32 by ggml's own function, 16 MiB of it at a time or, where that is more, 32 rows; x is not quantised, as
/// it is in ggml, and sums are of f32. One per context that computes: it holds the scratch.
template <class Operation>
class ggml_linear {
 public:
  explicit ggml_linear(const Operation& op = {}) : op_(op) {}

  /// Statuses: those of `check` and of a linear layer.
  report compute(const ggml_product& p, executor_ref executor) {
    using namespace detail;
    if (report r = check(p); !r) return r;
    const ggml_tensor& weight = *p.weight;
    if (p.x->ne[1] == 0 || p.x->ne[2] == 0 || p.x->ne[3] == 0) return {};
    if (!weight.data) return null_fault("weight.data");
    if (!p.x->data) return null_fault("x.data");
    if (!p.out->data) return null_fault("out.data");
    const bool widened = widened_for_ggml(weight.type);
    const std::int64_t rows = widened ? rows_at_once(weight) : weight.ne[1];
    if (widened) wide_.reserve(static_cast<std::size_t>(rows * weight.ne[0]) * sizeof(float));
    for (std::int64_t first = 0; first < weight.ne[1]; first += rows) {
      const std::int64_t count = (std::min)(rows, weight.ne[1] - first);
      ggml_tensor piece = weight;
      piece.data = static_cast<char*>(weight.data) + static_cast<std::size_t>(first) * weight.nb[1];
      piece.ne[1] = count;
      const ggml_tensor computed = ggml_computed(piece, wide_.as<float>());
      if (widened) widen_ggml(piece, computed, executor);
      for (std::int64_t c = 0; c < p.x->ne[3]; ++c) {
        for (std::int64_t b = 0; b < p.x->ne[2]; ++b) {
          const linear_args args = ggml_linear_args(p, computed, first, count, b, c);
          workspace_.reserve(op_.workspace_bytes(args, executor.concurrency()));
          if (report r = op_.run(args, workspace_, executor); !r) return r;
        }
      }
    }
    return {};
  }

 private:
  static std::int64_t rows_at_once(const ggml_tensor& weight) {
    constexpr std::int64_t numbers = std::int64_t{4} << 20;
    const std::int64_t rows = (std::max)(std::int64_t{32}, numbers / weight.ne[0] / 32 * 32);
    return (std::min)(rows, weight.ne[1]);
  }

  Operation op_;
  buffer wide_, workspace_;
};

}}  // namespace skim::v0_2
