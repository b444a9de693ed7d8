// SPDX-License-Identifier: Apache-2.0
/// \file A model's weights as numbers that tests compute and compare with.
#pragma once

#include "../model.hpp"

namespace needle_test {

inline needle::matrix widened(const needle::stored_matrix& m) {
  needle::matrix wide(m.rows(), m.view.extents[1]);
  for (std::int64_t r = 0; r < m.rows(); ++r) m.widen(r, wide.row(r).data());
  return wide;
}

}  // namespace needle_test
