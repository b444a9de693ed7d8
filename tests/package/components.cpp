// SPDX-License-Identifier: Apache-2.0
/// \file What the components add: oneTBB's threads and Eigen's matrices.
#include <skim/interop/eigen.hpp>
#include <skim/interop/tbb.hpp>

int main() {
  const Eigen::Matrix<float, 3, 4, Eigen::RowMajor> matrix;
  return skim::tbb_executor{}.concurrency() > 0 && skim::as_view(matrix).extents[0] == 3 ? 0 : 1;
}
