// SPDX-License-Identifier: Apache-2.0
// Attention from raw pointers, as an engine holds them: f32 queries over a bf16 cache, first with all past keys, then
// with the 256 that QUOKA chooses.
#include <skim/reference/attention.hpp>
#include <skim/skim.hpp>

#include <cstdio>
#include <random>
#include <vector>

namespace {

constexpr std::int64_t Tk = 4000, Tq = 64, Hq = 8, Hk = 2, D = 64;

/// Mean squared error of x as a share of the mean square of y.
template <class X, class Y>
double nmse(const std::vector<X>& x, const std::vector<Y>& y) {
  double error = 0, power = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double a = static_cast<double>(x[i]), b = static_cast<double>(y[i]);
    error += (a - b) * (a - b);
    power += b * b;
  }
  return error / power;
}

/// Runs `op` serially in memory of its own and prints what went wrong, if anything did.
template <class Op>
bool run(const Op& op, const skim::attention_args& args) {
  const skim::buffer workspace(op.workspace_bytes(args, 1));
  const skim::report report = op.run(args, {}, workspace, skim::serial_executor{});
  char text[160];
  if (!report) std::fprintf(stderr, "%s\n", skim::describe(report, text, sizeof text));
  return report.ok();
}

}  // namespace

int main() {
  // A fortieth of the keys, in runs of eight, lies along a direction that the queries share: something worth choosing.
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> topic(D), q(Tq * Hq * D), out(q.size());
  std::vector<std::uint16_t> keys((Tk + Tq) * Hk * D), values(keys.size());  // the engine's bf16: plain 16 bits
  for (float& x : topic) x = normal(generator);
  for (std::size_t i = 0; i < q.size(); ++i) q[i] = topic[i % D] + normal(generator);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const bool on_topic = i / (Hk * D) % 320 < 8;
    keys[i] = skim::from_float<skim::bf16>((on_topic ? topic[i % D] : 0) + normal(generator)).bits;
    values[i] = skim::from_float<skim::bf16>(normal(generator)).bits;
  }

  skim::attention_args args;
  args.q = skim::tensor_view<const float, 3>(q.data(), {Tq, Hq, D});
  args.out = skim::tensor_view<float, 3>(out.data(), {Tq, Hq, D});
  args.kv = skim::contiguous_kv({keys.data(), {Tk + Tq, Hk, D}, skim::element::bf16},
                                {values.data(), {Tk + Tq, Hk, D}, skim::element::bf16}, Tk + Tq);

  std::vector<double> exact(out.size());
  skim::reference::attend(args, nullptr, {exact.data(), {Tq, Hq, D}});
  if (!run(skim::cpu::attention<>{}, args)) return 1;
  const double dense = nmse(out, exact);
  const skim::quoka chooses_256{skim::queries::needed(48), skim::retention::preset(256)};
  if (!run(skim::cpu::attention{chooses_256}, args)) return 1;
  const double sparse = nmse(out, exact);
  std::printf("all %d past keys: NMSE %.1e; QUOKA's 256: NMSE %.1e\n", static_cast<int>(Tk), dense, sparse);
  return dense < 1e-10 && sparse < 1e-2 ? 0 : 1;
}
