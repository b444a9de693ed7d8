// SPDX-License-Identifier: Apache-2.0
// The FFN by Eigen. Its products run on one thread each: every thread computes its share of the output's columns.
#define EIGEN_DONT_PARALLELIZE
#include "ffn.hpp"

SKIM_INTRINSICS_BEGIN
#include <Eigen/Core>
SKIM_INTRINSICS_END

namespace bench {
namespace {

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using map = Eigen::Map<matrix>;
using const_map = Eigen::Map<const matrix>;

class eigen_ffn {
 public:
  eigen_ffn(const ffn_layers& of, const skim::tbb_executor& executor)
      : of_(&of), executor_(executor), gate_(of.shape.M, of.shape.f), values_(of.shape.M, of.shape.f) {}

  void run(std::int64_t layer, void* out) {
    const ffn_shape& s = of_->shape;
    const const_map x(static_cast<const float*>(of_->x()), s.M, s.d);
    const const_map gate = weights(of_->gate(layer)), up = weights(of_->up(layer)), down = weights(of_->down(layer));
    map result(static_cast<float*>(out), s.M, s.d);
    share_columns(s.f, [&](std::int64_t begin, std::int64_t n) {
      gate_.middleCols(begin, n).noalias() = x * gate.middleRows(begin, n).transpose();
      values_.middleCols(begin, n).noalias() = x * up.middleRows(begin, n).transpose();
      for (std::int64_t t = 0; t < s.M; ++t) multiply_by_silu(&gate_(t, begin), &values_(t, begin), n);
    });
    share_columns(s.d, [&](std::int64_t begin, std::int64_t n) {
      result.middleCols(begin, n).noalias() = values_ * down.middleCols(begin, n);
    });
  }

 private:
  const_map weights(const void* data) const { return {static_cast<const float*>(data), of_->shape.f, of_->shape.d}; }

  template <class Body>
  void share_columns(std::int64_t columns, const Body& body) const {
    const std::int64_t shares = executor_.concurrency();
    executor_.parallel_for(shares, [&](std::int64_t share, unsigned) {
      const std::int64_t begin = columns * share / shares;
      body(begin, columns * (share + 1) / shares - begin);
    });
  }

  const ffn_layers* of_;
  skim::tbb_executor executor_;
  matrix gate_, values_;
};

ffn_call make(const ffn_layers& layers, const skim::tbb_executor& executor) {
  const auto ffn = std::make_shared<eigen_ffn>(layers, executor);
  return [ffn](std::int64_t layer, void* out) { ffn->run(layer, out); };
}

}  // namespace

ffn_peer eigen_peer() {
  return {"eigen", make, true};
}

}  // namespace bench
