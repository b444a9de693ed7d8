// SPDX-License-Identifier: Apache-2.0
// FastForward for an engine's own FFN layer: calibrate on the inputs the layer sees, then compute half of the neurons.
#include <skim/calibrate/fastforward.hpp>
#include <skim/skim.hpp>

#include <cstdio>
#include <random>

namespace {
constexpr std::int64_t M = 128, d = 128, f = 512;
std::mt19937 generator(1);

std::vector<float> normal(std::int64_t count, float size) {
  std::normal_distribution<float> draw(0, size);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = draw(generator);
  return values;
}

/// A block of tokens on one of eight topics, which decide what neurons matter: what the predictor can learn.
std::vector<float> block_about(std::int64_t topic) {
  std::vector<float> x = normal(M * d, 1);
  for (std::int64_t i = 0; i < M; ++i) x[static_cast<std::size_t>(i * d + topic)] += 8;
  return x;
}

skim::tensor_view<const float, 2> matrix(const std::vector<float>& values, std::int64_t rows) {
  return {values.data(), {rows, static_cast<std::int64_t>(values.size()) / rows}};
}
}  // namespace

int main() {
  const std::vector<float> gate = normal(f * d, 0.3f), up = normal(f * d, 0.1f), down = normal(f * d, 0.05f);
  const skim::calibrate::ffn_layer layer{matrix(gate, f), matrix(up, f), matrix(down, f)};

  // The engine hands out its FFN inputs: here six prompts of 16 blocks; some of the prompts judge the others.
  const auto source = [](std::int64_t, const skim::calibrate::input_sink& sink) {
    for (std::int64_t prompt = 0; prompt < 6; ++prompt) {
      for (std::int64_t i = 0; i < 16; ++i) sink(prompt, matrix(block_about(i % 8), M));
    }
  };
  const auto fitted = skim::calibrate::fit({layer}, source, {}, skim::serial_executor{});

  const skim::cpu::ffn op{fitted.model.fastforward(0)};  // views the fitted parts
  const std::vector<float> x = block_about(3);
  std::vector<float> out(x.size());
  const skim::tensor_view<float, 2> to(out.data(), {M, d});
  skim::ffn_args args{matrix(x, M), layer.gate, layer.up, layer.down, to};
  args.first_block = 1;  // neither the prompt's first nor its last: sparse
  const skim::buffer workspace(op.workspace_bytes(args, 1));
  const skim::report report = op.run(args, {}, workspace, skim::serial_executor{});
  if (!report || report.taken != skim::path::sparse) return 1;

  const auto &ours = fitted.reports[0].predictor, &set = fitted.reports[0].calibrated_set;
  std::printf("half of %d neurons: %.0f %% of them the oracle's (of one constant set %.0f %%), output off by %.2f\n",
              static_cast<int>(f), 100 * ours.recall, 100 * set.recall, ours.compensated_error);
  return ours.recall > set.recall ? 0 : 1;
}
