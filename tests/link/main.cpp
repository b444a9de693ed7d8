// SPDX-License-Identifier: Apache-2.0
/// \file Runs every unit that this processor can, and compares what they computed.
#include "unit.hpp"

#include <skim/buffer.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

namespace {

constexpr std::int64_t Tq = 40, Tk = 300, tokens = Tk + Tq, Hq = 6, Hk = 2, D = 40, d = 48, f = 100;

void run_in_order(void*, std::int64_t n, skim::host_executor::task task, void* context) {
  for (std::int64_t index = 0; index < n; ++index) task(context, index, 0);
}

std::vector<float> waves(std::int64_t count, float step) {
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(std::sin(step * static_cast<float>(i)));
  return values;
}

/// What a unit computes on a cache of bf16: one number for each rule.
skim::report run(unit_function unit, float* sums) {
  const skim::host_executor pool(nullptr, 1, run_in_order);
  unit_call call{{}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, pool, sums};

  const skim::buffer k(tokens * Hk * D * 2), v(k.bytes()), norms(Hk * tokens * 4), positions(norms.bytes());
  skim::kv_cache kv = skim::contiguous_cache({k.data(), {tokens, Hk, D}, skim::element::bf16},
                                             {v.data(), {tokens, Hk, D}, skim::element::bf16}, tokens);
  kv.inverse_norms = norms.as<float>();
  kv.positions = positions.as<std::int32_t>();
  kv.inverse_norms_stride = kv.positions_stride = tokens;
  const std::vector<float> keys = waves(tokens * Hk * D, 0.37f), values = waves(tokens * Hk * D, 0.61f);
  call.append.k = skim::tensor_view<const float, 3>(keys.data(), {tokens, Hk, D});
  call.append.v = skim::tensor_view<const float, 3>(values.data(), {tokens, Hk, D});
  call.append.kv = kv;

  const std::vector<float> queries = waves(Tq * Hq * D, 0.23f);
  std::vector<float> out(Tq * Hq * D), lse(Tq * Hq), scores(Hk * tokens);
  constexpr std::int64_t blocks = Tq / 16 + 1;
  std::vector<std::int32_t> slots(blocks * Hk * tokens), counts(blocks * Hk), kept(Hk * tokens), kept_counts(Hk);
  call.attention.q = skim::tensor_view<const float, 3>(queries.data(), {Tq, Hq, D});
  call.attention.out = skim::tensor_view<float, 3>(out.data(), {Tq, Hq, D});
  call.attention.lse = {lse.data(), {Tq, Hq}};
  call.attention.kv = kv;
  call.lists = {slots.data(), counts.data(), 0, tokens};
  call.scores = {scores.data(), {Hk, tokens}};
  call.eviction.kv = kv;
  call.eviction.new_tokens = Tq;
  call.eviction.attended = call.attention;
  call.kept = {kept.data(), kept_counts.data(), Hk, 150};

  const std::vector<float> x = waves(Tq * d, 0.29f), weights = waves(8 * f * d, 0.43f);
  std::vector<float> ffn_out(Tq * d), linear_out(Tq * f);
  std::vector<std::int32_t> neurons(f);
  std::int32_t neuron_count = 0;
  const auto rows = [&](std::int64_t first, std::int64_t count, std::int64_t width) {
    return skim::tensor_view<const float, 2>(weights.data() + first, {count, width});
  };
  call.ffn.x = skim::tensor_view<const float, 2>(x.data(), {Tq, d});
  call.ffn.gate = rows(0, f, d);
  call.ffn.up = rows(f * d, f, d);
  call.ffn.down = rows(2 * f * d, f, d);
  call.ffn.out = skim::tensor_view<float, 2>(ffn_out.data(), {Tq, d});
  call.ffn.first_block = 1;
  call.neurons = {neurons.data(), &neuron_count, 1, f};
  call.fastforward.keep = skim::neuron_retention::budget(40);
  call.fastforward.predictor.query = skim::tensor_view<const float, 1>(weights.data() + 3 * f * d, {d});
  call.fastforward.predictor.w1 = rows(4 * f * d, d, 4);
  call.fastforward.predictor.w2 = rows(5 * f * d, 4, f);
  call.fastforward.compensator.c1 = rows(6 * f * d, d, 6);
  call.fastforward.compensator.c2 = rows(7 * f * d, 6, d);
  call.calibrated_set.keep = call.fastforward.keep;
  call.calibrated_set.statistic = {weights.data(), {f}};
  call.linear.x = call.ffn.x;
  call.linear.weight = call.ffn.up;
  call.linear.bias = skim::tensor_view<const float, 1>(weights.data(), {f});
  call.linear.out = skim::tensor_view<float, 2>(linear_out.data(), {Tq, f});

  const skim::buffer state(std::size_t{1} << 20), workspace(std::size_t{1} << 24);
  call.state = state;
  call.workspace = workspace;
  return unit(call);
}

struct level {
  const char* name;
  unit_function unit;
  bool runs_here;
};

}  // namespace

int main() {
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  const level levels[] = {
      {"x86-64", run_x86_64, true}, {"x86-64-v3", run_x86_64_v3, v3}, {"x86-64-v4", run_x86_64_v4, v4}};

  float baseline[unit_rules] = {};
  bool good = true;
  for (const level& at : levels) {
    if (!at.runs_here) {
      std::printf("%s: not for this processor\n", at.name);
      continue;
    }
    float sums[unit_rules] = {};
    const skim::report report = run(at.unit, sums);
    if (!report) {
      char text[200];
      std::printf("%s: %s\n", at.name, skim::describe(report, text, sizeof text));
      return 1;
    }
    for (int rule = 0; rule < unit_rules; ++rule) {
      if (at.unit == run_x86_64) baseline[rule] = sums[rule];
      const bool agrees = sums[rule] > 0 && std::fabs(sums[rule] - baseline[rule]) <= 1e-3f * baseline[rule];
      std::printf("%s: rule %d: %.7g%s\n", at.name, rule, static_cast<double>(sums[rule]), agrees ? "" : " DIFFERS");
      good = good && agrees;
    }
  }
  return good ? 0 : 1;
}
