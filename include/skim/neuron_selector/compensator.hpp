// SPDX-License-Identifier: Apache-2.0
/// \file FastForward's compensator: a small FFN that makes up for the neurons that a block leaves out (arXiv 2602.00397,
/// section 3.2).
#pragma once

#include <skim/ffn.hpp>

namespace skim { inline namespace v0_2 {

/// A small FFN beside the sparse one, token by token, not told which neurons were dropped:
///
///     out += act(x c1) c2
///
/// The paper's c is d / 8. `c1` and `c2` have one element type.
struct neuron_compensator {
  tensor_view<const void, 2> c1;  ///< [d, c], or empty: no compensation
  tensor_view<const void, 2> c2;  ///< [c, d]
  activation act = activation::silu;
};

/// c of the paper: d / 8, at least 1.
SKIM_HD SKIM_INLINE constexpr std::int64_t compensator_width(std::int64_t d) {
  return d < 8 ? 1 : d / 8;
}

SKIM_HD SKIM_INLINE constexpr bool compensates(const neuron_compensator& compensator) {
  return compensator.c1.data != nullptr || compensator.c1.extents[1] != 0;
}

SKIM_LOCAL constexpr report check(const neuron_compensator& compensator, std::int64_t d,
                                  pointers given = pointers::required) {
  using namespace detail;
  if (!compensates(compensator)) return {};
  if (report r = check_width(compensator.c1, 1, "compensator.c1"); !r) return r;
  const std::int64_t c = compensator.c1.extents[1];
  if (report r = check_matrix(compensator.c1, d, c, "compensator.c1", given); !r) return r;
  if (report r = check_matrix(compensator.c2, c, d, "compensator.c2", given); !r) return r;
  if (report r = check_enumerator("compensator.act", compensator.act, activation::relu_squared); !r) return r;
  return check_same_type(compensator.c2.type, compensator.c1.type, "compensator.c2");
}

/// Compensating all rows of a call: c1 and c2 are read once, what they add to is read by the FFN.
SKIM_HD SKIM_INLINE cost_estimate compensation_cost(const neuron_compensator& compensator, const ffn_args& args) {
  const std::int64_t d = args.x.extents[1], c = compensator.c1.extents[1];
  return {4 * static_cast<double>(args.x.extents[0]) * static_cast<double>(d) * static_cast<double>(c),
          static_cast<double>(d) * static_cast<double>(bytes_of(compensator.c1.type, c)) +
              static_cast<double>(c) * static_cast<double>(bytes_of(compensator.c2.type, d))};
}

}}  // namespace skim::v0_2
