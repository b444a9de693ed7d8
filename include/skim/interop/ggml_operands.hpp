// SPDX-License-Identifier: Apache-2.0
/// \file Tensors of ggml as views, and whether skim takes an attention node of them. Needs ggml.h alone, which the host brings.
#pragma once

#include <skim/attention.hpp>
#include <skim/executor.hpp>

#include <ggml.h>

#include <algorithm>
#include <cstring>

namespace skim { inline namespace v0_2 {

/// What skim calls a type; `none` where it has no such type.
inline element element_of_ggml(ggml_type type) {
  switch (type) {
    case GGML_TYPE_F32:
      return element::f32;
    case GGML_TYPE_F16:
      return element::f16;
    case GGML_TYPE_BF16:
      return element::bf16;
    case GGML_TYPE_Q8_0:
      return element::q8_0;
    default:
      return element::none;
  }
}

/// Whether K or V of the type is widened to f32 before it is read, by ggml's own function: its quantised types but Q8_0.
inline bool widened_for_ggml(ggml_type type) {
  return element_of_ggml(type) == element::none && ggml_is_quantized(type) && ggml_get_type_traits(type)->to_float;
}

/// Operands of the node, from wherever the host keeps them. q [D, Tq, Hq, streams], k [D, cells, Hk, streams],
/// v [Dv, cells, Hk, streams], mask [cells, Tq or more, 1, streams or fewer], out [Dv, Hq, Tq, streams], ggml's order of axes.
struct ggml_operands {
  const ggml_tensor *q = nullptr, *k = nullptr, *v = nullptr;
  const ggml_tensor* mask = nullptr;   ///< optional; f16, bf16 or f32
  const ggml_tensor* sinks = nullptr;  ///< optional: [Hq] f32
  ggml_tensor* out = nullptr;
  float scale = 1, max_bias = 0, soft_cap = 0;

  /// Whether V is the front of K's rows, as of MLA.
  bool v_in_k() const {
    return k->data == v->data && k->data && k->type == v->type && k->nb[1] == v->nb[1] && v->ne[0] <= k->ne[0] &&
           (k->nb[2] == v->nb[2] || k->ne[2] == 1) && (k->nb[3] == v->nb[3] || k->ne[3] == 1);
  }
};

/// Of a node of that op.
inline ggml_operands ggml_operands_of(ggml_tensor& node) {
  ggml_operands x;
  x.q = node.src[0];
  x.k = node.src[1];
  x.v = node.src[2];
  x.mask = node.src[3];
  x.sinks = node.src[4];
  x.out = &node;
  float numbers[3];
  std::memcpy(numbers, node.op_params, sizeof numbers);
  x.scale = numbers[0];
  x.max_bias = numbers[1];
  x.soft_cap = numbers[2];
  return x;
}

namespace detail {

/// ggml counts strides in bytes, of which the first axis has those of a block.
inline std::int64_t ggml_stride(const ggml_tensor& x, int axis) {
  const std::size_t blocks = x.nb[axis] / ggml_type_size(x.type);
  return static_cast<std::int64_t>(blocks) * (axis == 0 ? 1 : static_cast<std::int64_t>(ggml_blck_size(x.type)));
}

/// [rows, heads, dim] of one stream of q, k or v, from a row on; those of k and v are cells.
inline tensor_view<const void, 3> ggml_rows(const ggml_tensor& x, std::int64_t stream, std::int64_t first = 0) {
  const char* const data = static_cast<const char*>(x.data);
  return {data ? data + static_cast<std::size_t>(stream) * x.nb[3] + static_cast<std::size_t>(first) * x.nb[1] : data,
          {x.ne[1] - first, x.ne[2], x.ne[0]},
          {ggml_stride(x, 1), ggml_stride(x, 2), ggml_stride(x, 0)},
          element_of_ggml(x.type)};
}

/// The same of the result.
inline tensor_view<void, 3> ggml_result(const ggml_tensor& out, std::int64_t stream) {
  char* const data = static_cast<char*>(out.data);
  return {data ? data + static_cast<std::size_t>(stream) * out.nb[3] : data,
          {out.ne[2], out.ne[1], out.ne[0]},
          {ggml_stride(out, 2), ggml_stride(out, 1), ggml_stride(out, 0)},
          element_of_ggml(out.type)};
}

/// Rows [first, first + count) of a stream's mask.
inline tensor_view<const void, 2> ggml_mask_rows(const ggml_tensor& mask, std::int64_t stream, std::int64_t first,
                                                 std::int64_t count, std::int64_t cells) {
  const char* const data = static_cast<const char*>(mask.data) + static_cast<std::size_t>(stream) * mask.nb[3] +
                           static_cast<std::size_t>(first) * mask.nb[1];
  return {data, {count, cells}, {ggml_stride(mask, 1), 1}, element_of_ggml(mask.type)};
}

/// The tensor as it is computed on: itself or, where it is widened, f32 at `data`, closely packed.
inline ggml_tensor ggml_computed(const ggml_tensor& x, void* data) {
  ggml_tensor wide = x;
  if (!widened_for_ggml(x.type)) return wide;
  wide.type = GGML_TYPE_F32;
  wide.data = data;
  wide.nb[0] = sizeof(float);
  for (int axis = 1; axis < 4; ++axis) wide.nb[axis] = wide.nb[axis - 1] * static_cast<std::size_t>(x.ne[axis - 1]);
  return wide;
}

/// `to`, f32, = the numbers of `from`, by ggml's own function: every row once.
inline void widen_ggml(const ggml_tensor& from, const ggml_tensor& to, executor_ref executor) {
  const auto to_float = ggml_get_type_traits(from.type)->to_float;
  constexpr std::int64_t rows = 32;  // of a task
  const std::int64_t tasks = (from.ne[1] + rows - 1) / rows;
  executor.parallel_for(tasks * from.ne[2] * from.ne[3], [&](std::int64_t task, unsigned) {
    const std::int64_t first = task % tasks * rows, head = task / tasks % from.ne[2],
                       stream = task / tasks / from.ne[2];
    const auto row_of = [&](const ggml_tensor& t, std::int64_t cell) {
      return static_cast<char*>(t.data) + static_cast<std::size_t>(cell) * t.nb[1] +
             static_cast<std::size_t>(head) * t.nb[2] + static_cast<std::size_t>(stream) * t.nb[3];
    };
    for (std::int64_t cell = first; cell < (std::min)(first + rows, from.ne[1]); ++cell) {
      to_float(row_of(from, cell), reinterpret_cast<float*>(row_of(to, cell)), from.ne[0]);
    }
  });
}

inline report check_ggml_tensor(const ggml_tensor* x, const char* name, bool may_be_quantised = false) {
  if (!x) return null_fault(name);
  const bool plain = element_of_ggml(x->type) != element::none && ggml_blck_size(x->type) == 1;
  if (!plain && !(may_be_quantised && ggml_is_quantized(x->type) && ggml_get_type_traits(x->type)->to_float)) {
    return fault(status::bad_type, name, ggml_type_name(x->type),
                 may_be_quantised ? "f32, f16, bf16 or a quantised type" : "f32, f16 or bf16");
  }
  if (x->nb[0] != ggml_type_size(x->type)) {
    return fault(status::bad_stride, name, static_cast<std::int64_t>(x->nb[0]),
                 static_cast<std::int64_t>(ggml_type_size(x->type)));
  }
  if (x->ne[0] % ggml_blck_size(x->type) != 0) {
    return fault(status::bad_extent, name, x->ne[0], static_cast<std::int64_t>(ggml_blck_size(x->type)),
                 "a multiple of");
  }
  for (int axis = 1; axis < 4; ++axis) {
    if (x->nb[axis] % ggml_type_size(x->type) != 0) {
      return fault(status::bad_stride, name, static_cast<std::int64_t>(x->nb[axis]),
                   static_cast<std::int64_t>(ggml_type_size(x->type)), "a multiple of");
    }
  }
  return {};
}

}  // namespace detail

/// What the node asks for as one dense call over all cells, as before there is memory: to check it, or to size scratch.
inline attention_args ggml_shape_of(const ggml_operands& x) {
  using namespace detail;
  attention_args args;
  args.q = ggml_rows(*x.q, 0);
  args.out = ggml_result(*x.out, 0);
  args.kv =
      contiguous_kv(ggml_rows(ggml_computed(*x.k, nullptr), 0), ggml_rows(ggml_computed(*x.v, nullptr), 0), x.k->ne[1]);
  if (x.v_in_k()) args.kv = with_values_in_keys(args.kv, x.v->ne[0]);
  args.q.extents[0] = args.out.extents[0] = (std::min)(x.q->ne[1], x.k->ne[1]);
  args.scale = x.scale;
  args.soft_cap = x.soft_cap;
  return args;
}

/// Whether skim takes the node: types, strides, heads, mask. Reads no data, so that a host can ask while it builds the graph
/// and leave to its own kernel what is refused: other types, transposed V, ALiBi (`max_bias`).
inline report check(const ggml_operands& x) {
  using namespace detail;
  if (report r = check_ggml_tensor(x.q, "q"); !r) return r;
  if (report r = check_ggml_tensor(x.k, "k", true); !r) return r;
  if (report r = check_ggml_tensor(x.v, "v", true); !r) return r;
  if (report r = check_ggml_tensor(x.out, "out"); !r) return r;
  if (x.max_bias != 0) return fault(status::unsupported, "max_bias", static_cast<double>(x.max_bias), 0);
  if (x.scale == 0) return fault(status::bad_value, "scale", 0.0, "another number than 0");
  const std::int64_t streams = x.q->ne[3];
  if (report r = check_range("q.ne[3]", streams, 0, largest_index, status::bad_extent); !r) return r;
  if (x.k->ne[3] != streams) return fault(status::bad_extent, "k.ne[3]", x.k->ne[3], streams);
  if (x.v->ne[3] != streams) return fault(status::bad_extent, "v.ne[3]", x.v->ne[3], streams);
  if (x.v->ne[1] != x.k->ne[1]) return fault(status::bad_extent, "v.ne[1]", x.v->ne[1], x.k->ne[1]);
  if (x.v->ne[2] != x.k->ne[2]) return fault(status::bad_extent, "v.ne[2]", x.v->ne[2], x.k->ne[2]);
  if (x.mask) {
    if (report r = check_ggml_tensor(x.mask, "mask"); !r) return r;
    if (x.mask->ne[0] < x.k->ne[1])
      return fault(status::bad_extent, "mask.ne[0]", x.mask->ne[0], x.k->ne[1], "at least");
    if (x.mask->ne[1] < x.q->ne[1])
      return fault(status::bad_extent, "mask.ne[1]", x.mask->ne[1], x.q->ne[1], "at least");
    if (x.mask->ne[2] != 1) return fault(status::unsupported, "mask.ne[2]", x.mask->ne[2], 1);
    if (x.mask->ne[3] < 1 || streams % x.mask->ne[3] != 0) {
      return fault(status::bad_extent, "mask.ne[3]", x.mask->ne[3], streams, "a divisor of");
    }
  }
  if (x.out->ne[2] != x.q->ne[1]) return fault(status::bad_extent, "out.ne[2]", x.out->ne[2], x.q->ne[1]);
  if (x.out->ne[3] != streams) return fault(status::bad_extent, "out.ne[3]", x.out->ne[3], streams);
  if (x.sinks) {
    if (report r = check_ggml_tensor(x.sinks, "sinks"); !r) return r;
    if (x.sinks->type != GGML_TYPE_F32) return fault(status::bad_type, "sinks", ggml_type_name(x.sinks->type), "f32");
    if (x.sinks->ne[0] != x.q->ne[2]) return fault(status::bad_extent, "sinks.ne[0]", x.sinks->ne[0], x.q->ne[2]);
  }
  return check(ggml_shape_of(x), pointers::ignored);
}

}}  // namespace skim::v0_2
