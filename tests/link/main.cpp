// SPDX-License-Identifier: Apache-2.0
/// \file Runs every unit that this processor can, and compares what they computed.
#include "unit.hpp"

#include <cmath>
#include <cstdio>
#include <vector>

namespace {

constexpr std::int64_t Tq = 40, Tk = 300, Hq = 6, Hk = 2, D = 40, d = 48, f = 100;

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
  const std::size_t workspace_bytes = std::size_t{1} << 24;
  std::vector<skim::bf16> k((Tk + Tq) * Hk * D), v((Tk + Tq) * Hk * D);
  std::vector<float> out(Tq * Hq * D), norms(Hk * (Tk + Tq));
  std::vector<std::int32_t> slots(Hk * Tk), counts(Hk);
  std::vector<char> scratch(workspace_bytes + skim::memory_alignment);
  const std::vector<float> keys = waves((Tk + Tq) * Hk * D, 0.37f), values = waves((Tk + Tq) * Hk * D, 0.61f),
                           queries = waves(Tq * Hq * D, 0.23f);

  skim::kv_view kv = skim::contiguous_kv(skim::tensor_view<skim::bf16, 3>(k.data(), {Tk + Tq, Hk, D}),
                                         skim::tensor_view<skim::bf16, 3>(v.data(), {Tk + Tq, Hk, D}), Tk + Tq);
  kv.inverse_norms = norms.data();
  kv.inverse_norms_stride = Tk + Tq;

  unit_call call{{}, {}, {}, {}, {}, {}, skim::host_executor(nullptr, 1, run_in_order), sums};
  call.append.k = skim::tensor_view<const float, 3>(keys.data(), {Tk + Tq, Hk, D});
  call.append.v = skim::tensor_view<const float, 3>(values.data(), {Tk + Tq, Hk, D});
  call.append.kv = kv;
  call.attention.q = skim::tensor_view<const float, 3>(queries.data(), {Tq, Hq, D});
  call.attention.out = skim::tensor_view<float, 3>(out.data(), {Tq, Hq, D});
  call.attention.kv = kv;
  call.attention.dense_below = 0;
  call.lists = {slots.data(), counts.data(), Hk, Tk};
  const std::vector<float> x = waves(Tq * d, 0.29f), weights = waves(8 * f * d, 0.43f);
  std::vector<float> ffn_out(Tq * d);
  const auto rows = [&](std::int64_t first, std::int64_t count, std::int64_t width) {
    return skim::tensor_view<const float, 2>(weights.data() + first, {count, width});
  };
  call.ffn.x = skim::tensor_view<const float, 2>(x.data(), {Tq, d});
  call.ffn.gate = rows(0, f, d);
  call.ffn.up = rows(f * d, f, d);
  call.ffn.down = rows(2 * f * d, f, d);
  call.ffn.out = skim::tensor_view<float, 2>(ffn_out.data(), {Tq, d});
  call.ffn.block = 1;
  call.fastforward.keep = skim::neuron_retention::budget(40);
  call.fastforward.predictor.query = skim::tensor_view<const float, 1>(weights.data() + 3 * f * d, {d});
  call.fastforward.predictor.w1 = rows(4 * f * d, d, 4);
  call.fastforward.predictor.w2 = rows(5 * f * d, 4, f);
  call.fastforward.compensator.c1 = rows(6 * f * d, d, 6);
  call.fastforward.compensator.c2 = rows(7 * f * d, 6, d);
  const std::uintptr_t past_line = reinterpret_cast<std::uintptr_t>(scratch.data()) % skim::memory_alignment;
  call.workspace = {scratch.data() + skim::memory_alignment - past_line, workspace_bytes};
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
      {"x86-64", attend_x86_64, true}, {"x86-64-v3", attend_x86_64_v3, v3}, {"x86-64-v4", attend_x86_64_v4, v4}};

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
      if (at.unit == attend_x86_64) baseline[rule] = sums[rule];
      const bool agrees = sums[rule] > 0 && std::fabs(sums[rule] - baseline[rule]) <= 1e-3f * baseline[rule];
      std::printf("%s: rule %d: %.7g%s\n", at.name, rule, static_cast<double>(sums[rule]), agrees ? "" : " DIFFERS");
      good = good && agrees;
    }
  }
  return good ? 0 : 1;
}
