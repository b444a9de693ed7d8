// SPDX-License-Identifier: Apache-2.0
// The FFN by OpenBLAS, which packs weights anew in each call.
#include "ffn.hpp"

#include <cblas.h>

namespace bench {
namespace {

class openblas_ffn {
 public:
  openblas_ffn(const ffn_layers& of, const skim::tbb_executor& executor)
      : of_(&of),
        executor_(executor),
        gate_(static_cast<std::size_t>(of.shape.M * of.shape.f)),
        values_(gate_.size()) {}

  void run(std::int64_t layer, void* out) {
    const float* const x = static_cast<const float*>(of_->x());
    const std::int64_t M = of_->shape.M, f = of_->shape.f;
    multiply(x, of_->gate(layer), CblasTrans, gate_.data());
    multiply(x, of_->up(layer), CblasTrans, values_.data());
    executor_.parallel_for(
        M, [&](std::int64_t t, unsigned) { multiply_by_silu(gate_.data() + t * f, values_.data() + t * f, f); });
    multiply(values_.data(), of_->down(layer), CblasNoTrans, static_cast<float*>(out));
  }

 private:
  /// to [M, N] = from [M, K] times weights [f, d], transposed or not.
  void multiply(const float* from, const void* weights, CBLAS_TRANSPOSE how, float* to) const {
    const blasint M = static_cast<blasint>(of_->shape.M), d = static_cast<blasint>(of_->shape.d);
    const blasint f = static_cast<blasint>(of_->shape.f), K = how == CblasTrans ? d : f, N = how == CblasTrans ? f : d;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, how, M, N, K, 1, from, K, static_cast<const float*>(weights), d, 0, to, N);
  }

  const ffn_layers* of_;
  skim::tbb_executor executor_;
  std::vector<float> gate_, values_;  // [M, f]
};

ffn_call make(const ffn_layers& layers, const skim::tbb_executor& executor) {
  openblas_set_num_threads(static_cast<int>(executor.concurrency()));
  const auto ffn = std::make_shared<openblas_ffn>(layers, executor);
  return [ffn](std::int64_t layer, void* out) { ffn->run(layer, out); };
}

}  // namespace

ffn_peer openblas_peer() {
  return {"openblas", make, true};
}

}  // namespace bench
