// SPDX-License-Identifier: Apache-2.0
/// \file The FFN of one block of tokens, on all neurons or on a list of them: arguments, `check`, `check_indices`, cost.
///
/// Glossary: `M` tokens of the block, `d` the model's width, `f` neurons, `K` neurons computed.
#pragma once

#include <skim/policy.hpp>
#include <skim/math/activation.hpp>

namespace skim {
inline namespace v0_2 {

/// Arguments of one FFN call: one layer, one block of tokens. Plain values and views.
///
///     out = (act(x gate^T) * (x up^T)) down        gated
///     out = act(x up^T) down                       plain, where `gate` has no data
///
/// A neuron is one row of each weight. `down` is therefore stored [f, d], the transpose of what checkpoints hold (see
/// `transpose`): a neuron's three rows are contiguous, and any list of neurons costs what a range does.
struct ffn_args {
  tensor_view<const void, 2> x;     ///< [M, d], any element type: the FFN's input, after the norm
  tensor_view<const void, 2> gate;  ///< [f, d], or empty
  tensor_view<const void, 2> up;    ///< [f, d]
  tensor_view<const void, 2> down;  ///< [f, d]; all weights have one element type
  tensor_view<void, 2> out;         ///< [M, d], any element type; must not overlap any input
  activation act = activation::silu;

  std::int64_t block = 0;  ///< number of the block in the prompt, from 0
  bool last = false;       ///< the block is the prompt's last
  bool decode = false;     ///< the tokens are generated ones: see `neuron_retention::sparse_decode`
};

SKIM_HD SKIM_INLINE bool is_gated(const ffn_args& args) {
  return args.gate.data != nullptr;
}

/// True if the call computes all neurons.
SKIM_HD SKIM_INLINE constexpr bool runs_dense(const neuron_retention& keep, const ffn_args& args) {
  if (keep.neurons(args.up.extents[0]) >= args.up.extents[0]) return true;
  if (args.decode) return !keep.sparse_decode;
  return keep.dense_edges && (args.block == 0 || args.last);
}

namespace detail {

/// What `check` says of everything but the output: all that choosing neurons needs.
SKIM_INLINE constexpr report check_ffn_input(const ffn_args& args) {
  if (report r = check_matrix(args.x, -1, -1, {"x.extents[0]", "x.extents[1]", "x.strides[1]", "x.data", "x.type"});
      !r) {
    return r;
  }
  const std::int64_t M = args.x.extents[0], d = args.x.extents[1], f = args.up.extents[0];
  if (M > largest_width) return fault(status::bad_extent, "x.extents[0]", M, largest_width, "at most");
  if (d < 1) return fault(status::bad_extent, "x.extents[1]", d, 1, "at least");
  if (d > largest_width) return fault(status::unsupported, "x.extents[1]", d, largest_width, "at most");
  if (f < 1) return fault(status::bad_extent, "up.extents[0]", f, 1, "at least");
  if (f > largest_width) return fault(status::unsupported, "up.extents[0]", f, largest_width, "at most");
  if (report r = check_matrix(args.up, f, d, {"up.extents[0]", "up.extents[1]", "up.strides[1]", "up.data", "up.type"});
      !r) {
    return r;
  }
  if (report r = check_matrix(args.down, f, d,
                              {"down.extents[0]", "down.extents[1]", "down.strides[1]", "down.data", "down.type"});
      !r) {
    return r;
  }
  if (report r = check_same_type(args.down.type, args.up.type, "down.type"); !r) return r;
  if (is_gated(args)) {
    if (report r = check_matrix(args.gate, f, d,
                                {"gate.extents[0]", "gate.extents[1]", "gate.strides[1]", "gate.data", "gate.type"});
        !r) {
      return r;
    }
    if (report r = check_same_type(args.gate.type, args.up.type, "gate.type"); !r) return r;
  } else if (args.gate.extents[0] != 0) {
    return null_fault("gate.data");
  }
  if (args.act > activation::relu_squared) {
    return fault(status::bad_value, "act", static_cast<int>(args.act), static_cast<int>(activation::relu_squared),
                 "at most");
  }
  if (args.block < 0) return fault(status::bad_value, "block", args.block, 0, "at least");
  return {};
}

}  // namespace detail

/// Shapes, strides, types and numbers; O(1), follows no pointer. An empty block is valid.
SKIM_INLINE constexpr report check(const ffn_args& args) {
  if (report r = detail::check_ffn_input(args); !r) return r;
  return detail::check_matrix(args.out, args.x.extents[0], args.x.extents[1],
                              {"out.extents[0]", "out.extents[1]", "out.strides[1]", "out.data", "out.type"});
}

namespace detail {

/// Whether the list's neurons ascend within [0, f).
SKIM_INLINE constexpr report check_neurons(const index_lists& lists, std::int64_t f) {
  const std::int64_t count = lists.counts[0];
  if (count < 0) return fault(status::bad_index, "lists.counts[0]", count, 0, "at least");
  if (count > lists.capacity) return fault(status::bad_index, "lists.counts[0]", count, lists.capacity, "at most");
  std::int64_t least = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t neuron = lists.indices[i];
    if (neuron < least) return fault(status::bad_index, "lists.indices[i]", neuron, least, "ascending: at least");
    if (neuron >= f) return fault(status::bad_index, "lists.indices[i]", neuron, f - 1, "at most");
    least = neuron + 1;
  }
  return {};
}

}  // namespace detail

/// `check`, and whether the list's neurons ascend within [0, f). Reads the list: host memory.
inline report check_indices(const ffn_args& args, const index_lists& lists) {
  if (report r = check(args); !r) return r;
  if (report r = detail::check_room(lists, 1, 0); !r) return r;
  return detail::check_neurons(lists, args.up.extents[0]);
}

/// Computing `neurons` neurons for a block: weights are read once, x and out once.
SKIM_HD SKIM_INLINE cost_estimate ffn_cost(const ffn_args& args, std::int64_t neurons) {
  const double M = static_cast<double>(args.x.extents[0]), d = static_cast<double>(args.x.extents[1]);
  const double K = static_cast<double>(neurons), weights = is_gated(args) ? 3 : 2;
  return {2 * M * d * K * weights, K * d * weights * static_cast<double>(element_bytes(args.up.type)) +
                                       M * d * static_cast<double>(element_bytes(args.x.type)) +
                                       M * d * static_cast<double>(element_bytes(args.out.type))};
}

/// to [f, d] = from [d, f], transposed: a checkpoint's down projection becomes rows of neurons. Types must be equal.
/// Plain loops, for the time of loading. Statuses: those of shapes, strides, types and pointers.
inline report transpose(const tensor_view<const void, 2>& from, const tensor_view<void, 2>& to) {
  using namespace detail;
  if (report r = check_matrix(from, -1, -1,
                              {"from.extents[0]", "from.extents[1]", "from.strides[1]", "from.data", "from.type"});
      !r) {
    return r;
  }
  if (report r = check_matrix(to, from.extents[1], from.extents[0],
                              {"to.extents[0]", "to.extents[1]", "to.strides[1]", "to.data", "to.type"});
      !r) {
    return r;
  }
  if (report r = check_same_type(to.type, from.type, "to.type"); !r) return r;
  constexpr std::int64_t tile = 32;  // a tile's lines of both matrices stay in the first-level cache
  const std::int64_t rows = from.extents[0], columns = from.extents[1];
  const std::size_t bytes = static_cast<std::size_t>(element_bytes(from.type));
  for (std::int64_t row = 0; row < rows; row += tile) {
    for (std::int64_t column = 0; column < columns; column += tile) {
      for (std::int64_t i = row; i < rows && i < row + tile; ++i) {
        for (std::int64_t j = column; j < columns && j < column + tile; ++j) {
          std::memcpy(to.at(j, i), from.at(i, j), bytes);
        }
      }
    }
  }
  return {};
}

}  // namespace v0_2
}  // namespace skim
