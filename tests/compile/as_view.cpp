// SPDX-License-Identifier: Apache-2.0
/// \file What as_view must refuse: an expression without memory (CASE 1), and temporaries that own their elements: a
/// matrix (2), one given away (3), a class made from one (4), a `Ref` to const, which copies a matrix of the other order
/// (5), as heads, too (6).
#include <skim/interop/eigen.hpp>

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using constant = Eigen::Ref<const matrix>;

struct named_matrix : matrix {
  using matrix::matrix;
};

matrix temporary();

const void* data(const matrix& a, const matrix& b, const Eigen::MatrixXf& column_major) {
  matrix mine = a;
  static_cast<void>(b), static_cast<void>(column_major), static_cast<void>(mine);
#if CASE == 1
  return skim::as_view(a + b).data;
#elif CASE == 2
  return skim::as_view(temporary()).data;
#elif CASE == 3
  return skim::as_view(std::move(mine)).data;
#elif CASE == 4
  return skim::as_view(named_matrix(2, 3)).data;
#elif CASE == 5
  return skim::as_view(constant(column_major)).data;
#elif CASE == 6
  return skim::as_heads(constant(column_major), 2).data;
#else
  const constant copy(column_major);
  const Eigen::Ref<matrix> written(mine);
  const void* seen[] = {skim::as_view(a).data,
                        skim::as_view(copy).data,
                        skim::as_view(Eigen::Ref<matrix>(mine)).data,
                        skim::as_view(Eigen::Map<const matrix>(a.data(), 1, 1)).data,
                        skim::as_view(a.block(0, 0, 1, 1)).data,
                        skim::as_view(copy.middleCols(0, 1)).data,
                        skim::as_view(column_major.transpose()).data,
                        skim::as_view(a.array()).data,
                        skim::as_view(a.eval()).data,
                        skim::as_heads(written, 2).data};
  return seen[0];
#endif
}
