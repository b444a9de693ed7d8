// SPDX-License-Identifier: Apache-2.0
// Eigen matrices: what a projection gives is viewed, not copied, and threads come from oneTBB. Checked against attention
// written in Eigen.
#include <skim/interop/eigen.hpp>
#include <skim/interop/tbb.hpp>
#include <skim/skim.hpp>

#include <cstdio>

namespace {

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr Eigen::Index width = 384, Tk = 500, Tq = 40, Hq = 6, Hk = 2, D = 64;

/// One head: q [Tq, D] over k and v [Tk + Tq, D], of which token t of the chunk sees the first Tk + t + 1.
matrix attention_of_head(const matrix& q, const matrix& k, const matrix& v) {
  matrix logits = q * k.transpose() / std::sqrt(static_cast<float>(D));
  for (Eigen::Index t = 0; t < Tq; ++t) {
    auto row = logits.row(t);
    row = (row.array() - row.head(Tk + t + 1).maxCoeff()).exp();
    row.tail(Tq - t - 1).setZero();
    row /= row.sum();
  }
  return logits * v;
}

}  // namespace

int main() {
  std::srand(1);  // Eigen's random numbers
  const matrix x = matrix::Random(Tk + Tq, width), weights = matrix::Random(width, (Hq + 2 * Hk) * D) / 8;
  matrix qkv = x * weights;  // a fused projection; its parts are views too
  const auto q = qkv.bottomRows(Tq).leftCols(Hq * D);
  auto k = qkv.middleCols(Hq * D, Hk * D), v = qkv.rightCols(Hk * D);
  matrix out(Tq, Hq * D);

  skim::attention_args args;
  args.q = skim::as_heads(q, Hq);
  args.out = skim::as_heads(out, Hq);
  args.kv = skim::contiguous_kv(skim::as_heads(k, Hk), skim::as_heads(v, Hk), Tk + Tq);

  const skim::cpu::attention<> op;
  const skim::tbb_executor executor;
  const skim::buffer workspace(op.workspace_bytes(args, executor.concurrency()));
  const skim::report report = op.run(args, {}, workspace, executor);
  if (!report) {
    char text[160];
    std::fprintf(stderr, "%s\n", skim::describe(report, text, sizeof text));
    return 1;
  }

  float worst = 0;
  for (Eigen::Index h = 0; h < Hq; ++h) {
    const Eigen::Index head = h / (Hq / Hk);
    const matrix expected =
        attention_of_head(q.middleCols(h * D, D), k.middleCols(head * D, D), v.middleCols(head * D, D));
    worst = std::max(worst, (out.middleCols(h * D, D) - expected).cwiseAbs().maxCoeff());
  }
  std::printf("%d heads over %d keys with %u threads: largest difference to Eigen's own %.1e\n", static_cast<int>(Hq),
              static_cast<int>(Tk + Tq), executor.concurrency(), static_cast<double>(worst));
  return worst < 1e-4f ? 0 : 1;
}
