// SPDX-License-Identifier: Apache-2.0
// One FFN block of a ggml graph through skim, as a custom op beside ggml's own nodes: dense, and half of the neurons by
// FastForward, whose predictor is made here so that it knows which neurons are loud.
#include <skim/buffer.hpp>
#include <skim/cpu/dispatch.hpp>
#include <skim/interop/ggml_operands.hpp>
#include <skim/team_executor.hpp>
#include <skim/weights.hpp>

#include <ggml-cpu.h>

#include <cmath>
#include <cstdio>
#include <vector>

constexpr std::int64_t d = 256, f = 1024, M = 128;

struct ffn_op {
  skim::cpu::any_ffn op;
  skim::ffn_args args;  // all but the tokens
  skim::buffer workspace;
  skim::team_barrier barrier;
  static void run(ggml_tensor* out, int ith, int nth, void* self) {  // by each thread of ggml's
    ffn_op& me = *static_cast<ffn_op*>(self);
    const skim::team_executor team(static_cast<unsigned>(ith), static_cast<unsigned>(nth), me.barrier);
    skim::ffn_args args = me.args;
    args.x = skim::tensor_view<const float, 2>(static_cast<const float*>(out->src[0]->data), {M, d});
    args.out = skim::tensor_view<float, 2>(static_cast<float*>(out->data), {M, d});
    team.single([&] { me.workspace.reserve(me.op.workspace_bytes(args, team.concurrency())); });
    if (!me.op.run(args, {}, me.workspace, team) && ith == 0) std::fprintf(stderr, "skim refused\n");
  }
};

int main() {
  ggml_context* const context = ggml_init({std::size_t{64} << 20, nullptr, false});
  const auto filled = [context](ggml_type type, std::int64_t ne0, std::int64_t ne1, float size, float size_of_odd) {
    ggml_tensor* const made = ggml_new_tensor_2d(context, type, ne0, ne1);
    for (std::int64_t i = 0; i < ne0 * ne1; ++i) {
      const float wave = std::sin(0.37f * static_cast<float>(i % 9973) * static_cast<float>(i % 13 + 1));
      skim::store_element(made->data, skim::element_of_ggml(type), i, wave * (i / ne0 % 2 ? size_of_odd : size));
    }
    return made;
  };
  ggml_tensor *x = filled(GGML_TYPE_F32, d, M, 1, 1), *gate = filled(GGML_TYPE_F16, d, f, 0.2f, 0.2f),
              *up = filled(GGML_TYPE_F16, d, f, 0.2f, 0.002f), *down = filled(GGML_TYPE_F16, f, d, 0.2f, 0.2f);
  const auto rows_of = [](ggml_tensor* w) {
    return skim::tensor_view<skim::f16, 2>(static_cast<skim::f16*>(w->data), {w->ne[1], w->ne[0]});
  };
  ggml_tensor* const by_neuron = ggml_new_tensor_2d(context, GGML_TYPE_F16, d, f);  // skim's down: a neuron, a row
  if (!skim::transpose(rows_of(down), rows_of(by_neuron))) return 1;
  ffn_op dense, half;
  dense.args.gate = rows_of(gate), dense.args.up = rows_of(up), dense.args.down = rows_of(by_neuron);
  half.args = dense.args;
  half.args.first_block = 1;                          // the first of a prompt is dense
  std::vector<float> query(d), w1(2 * d), w2(2 * f);  // a logit is |a . w| times the neuron's loudness
  for (std::size_t i = 0; i < d; ++i) w1[2 * i + 1] = -(w1[2 * i] = std::sin(static_cast<float>(i)));
  for (std::size_t n = 0; n < 2 * f; n += 2) w2[n] = 1;
  skim::fastforward rule;
  rule.predictor = {skim::tensor_view<const float, 1>(query.data(), {d}),
                    skim::tensor_view<const float, 2>(w1.data(), {d, 2}),
                    skim::tensor_view<const float, 2>(w2.data(), {2, f})};
  half.op.selector = rule;
  ggml_tensor* const nodes[] = {
      ggml_mul_mat(context, down,
                   ggml_swiglu_split(context, ggml_mul_mat(context, gate, x), ggml_mul_mat(context, up, x))),
      ggml_custom_4d(context, GGML_TYPE_F32, d, M, 1, 1, &x, 1, ffn_op::run, GGML_N_TASKS_MAX, &dense),
      ggml_custom_4d(context, GGML_TYPE_F32, d, M, 1, 1, &x, 1, ffn_op::run, GGML_N_TASKS_MAX, &half)};
  ggml_cgraph* const graph = ggml_new_graph(context);
  for (ggml_tensor* const node : nodes) ggml_build_forward_expand(graph, node);
  ggml_graph_compute_with_ctx(context, graph, 2);
  const float* const own = ggml_get_data_f32(nodes[0]);
  double error[2] = {}, power = 0;
  for (std::int64_t i = 0; i < d * M; ++i) {
    power += static_cast<double>(own[i]) * static_cast<double>(own[i]);
    for (int n = 0; n < 2; ++n)
      error[n] += std::pow(static_cast<double>(ggml_get_data_f32(nodes[n + 1])[i] - own[i]), 2);
  }
  std::printf("NMSE against ggml: dense %.1e, half of the neurons %.1e\n", error[0] / power, error[1] / power);
  return error[0] < 1e-5 * power && error[1] < 1e-3 * power ? 0 : 1;
}
