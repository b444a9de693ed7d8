// SPDX-License-Identifier: Apache-2.0
/// \file A linear layer in plain double loops: the specification. Reads the stored values, rounds nothing, allocates. Call
/// `check` first; these functions do not.
#pragma once

#include <skim/linear.hpp>

#include <vector>

namespace skim { inline namespace v0_2 { namespace reference {

/// Element (i, j) of a matrix.
inline double element_at(const tensor_view<const void, 2>& matrix, std::int64_t i, std::int64_t j) {
  return static_cast<double>(load_element(matrix.data, matrix.type, matrix.offset(i, j)));
}

/// The bias of output `o`; 0 where there is none.
inline double bias_at(const linear_args& args, std::int64_t o) {
  if (!has_bias(args)) return 0;
  return static_cast<double>(load_element(args.bias.data, args.bias.type, args.bias.offset(o)));
}

/// x weight^T + bias: [M, n_out].
inline std::vector<double> linear(const linear_args& args) {
  std::vector<double> out;
  for (std::int64_t t = 0; t < args.x.extents[0]; ++t) {
    for (std::int64_t o = 0; o < args.weight.extents[0]; ++o) {
      double sum = bias_at(args, o);
      for (std::int64_t i = 0; i < args.x.extents[1]; ++i)
        sum += element_at(args.x, t, i) * element_at(args.weight, o, i);
      out.push_back(sum);
    }
  }
  return out;
}

}}}  // namespace skim::v0_2::reference
