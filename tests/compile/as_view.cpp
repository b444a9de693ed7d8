// SPDX-License-Identifier: Apache-2.0
/// \file What as_view must refuse: an expression without memory (CASE 1), a temporary (CASE 2).
#include <skim/interop/eigen.hpp>

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

matrix temporary();

const void* data(const matrix& a, const matrix& b) {
#if CASE == 1
  return skim::as_view(a + b).data;
#elif CASE == 2
  static_cast<void>(a), static_cast<void>(b);
  return skim::as_view(temporary()).data;
#else
  static_cast<void>(b);
  return skim::as_view(a).data;
#endif
}
