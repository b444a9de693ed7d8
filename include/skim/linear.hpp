// SPDX-License-Identifier: Apache-2.0
/// \file A linear layer: arguments, `check`, cost.
///
/// Glossary: `M` tokens, `n_in` and `n_out` widths.
#pragma once

#include <skim/weights.hpp>

namespace skim { inline namespace v0_2 {

/// Arguments of one call of a linear layer. Plain values and views.
///
///     out = x weight^T + bias
///
/// Kernels compute in f32: beyond 3.4e38, where numbers turn into infinities, must not lie, for any output, the sum of its
/// products' sizes.
struct linear_args {
  tensor_view<const void, 2> x;       ///< [M, n_in], any element type
  tensor_view<const void, 2> weight;  ///< [n_out, n_in], any element type: a row is an output, as in checkpoints
  tensor_view<const void, 1> bias;    ///< [n_out], any element type, or empty
  tensor_view<void, 2> out;           ///< [M, n_out], any element type; must not overlap any input
};

SKIM_HD SKIM_INLINE constexpr bool has_bias(const linear_args& args) {
  return args.bias.data != nullptr || args.bias.extents[0] != 0;
}

/// Shapes, strides and types; O(1), follows no pointer. M may be 0.
SKIM_LOCAL constexpr report check(const linear_args& args, pointers given = pointers::required) {
  using namespace detail;
  if (report r = check_tokens(args.x, "x", given); !r) return r;
  if (report r = check_width(args.weight, 0, "weight"); !r) return r;
  const std::int64_t n_out = args.weight.extents[0];
  if (report r = check_matrix(args.weight, n_out, args.x.extents[1], "weight", given); !r) return r;
  if (has_bias(args)) {
    if (report r = check_tensor(args.bias, "bias", given); !r) return r;
    if (report r = check_type(args.bias.type, "bias"); !r) return r;
    if (report r = check_extent(args.bias, 0, n_out, "bias"); !r) return r;
  }
  return check_matrix(args.out, args.x.extents[0], n_out, "out", given);
}

/// The weight is read once, x and out once.
SKIM_HD SKIM_INLINE cost_estimate linear_cost(const linear_args& args) {
  const double M = static_cast<double>(args.x.extents[0]), n_out = static_cast<double>(args.weight.extents[0]);
  const auto row_bytes = [](element type, std::int64_t n) { return static_cast<double>(bytes_of(type, n)); };
  return {2 * M * n_out * static_cast<double>(args.x.extents[1]),
          n_out * row_bytes(args.weight.type, args.x.extents[1]) + M * row_bytes(args.x.type, args.x.extents[1]) +
              M * row_bytes(args.out.type, args.weight.extents[0])};
}

}}  // namespace skim::v0_2
