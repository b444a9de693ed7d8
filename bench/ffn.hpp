// SPDX-License-Identifier: Apache-2.0
// The FFN layers that benchmarks work on, and the libraries that compute them beside skim.
#pragma once

#include "layers.hpp"

#include <functional>
#include <optional>

namespace bench {

/// A block of tokens of one model. See skim/ffn.hpp for the glossary.
struct ffn_shape {
  std::int64_t M = 128, d = 4096, f = 14336;
};

/// The gated FFNs of many layers, with predictors and compensators of the paper's sizes, of random normal weights that
/// keep the size of what passes through them, as a model's do.
///
/// Calls go round the layers, which together hold at least four times the last-level cache, twice that of the half that
/// a sparse call reads: weights come from memory, as in an engine. Inputs and output stay where they are.
class ffn_layers {
 public:
  ffn_layers(const ffn_shape& of, skim::element kind, const skim::tbb_executor& executor)
      : shape(of), type(kind), weights_(static_cast<std::size_t>(layers_of(of, kind) * layer_bytes(of, kind))) {
    x_ = skim::buffer(static_cast<std::size_t>(of.M * skim::bytes_of(type, of.d)));
    fill({x_.data(), {of.M, of.d}, type}, 1, 0, executor);
    for (std::int64_t layer = 0; layer < count(); ++layer) {
      std::int64_t part = 0;
      const auto scaled = [&](std::int64_t inputs) { return 1 / std::sqrt(static_cast<float>(inputs)); };
      const float scales[] = {scaled(of.d), scaled(of.d),   scaled(of.f), 1,
                              scaled(of.d), scaled(rank()), scaled(of.d), 0.1f * scaled(width())};
      for (const float scale : scales) {
        fill(matrix(layer, part), scale, static_cast<std::uint32_t>(8 * layer + part + 1), executor);
        ++part;
      }
    }
  }

  static std::int64_t layers_of(const ffn_shape& of, skim::element type) {
    return 4 * last_level_cache_bytes() / (3 * of.f * skim::bytes_of(type, of.d)) + 1;
  }
  std::int64_t count() const { return layers_of(shape, type); }

  const void* gate(std::int64_t layer) const { return matrix(layer, 0).data; }  ///< [f, d]
  const void* up(std::int64_t layer) const { return matrix(layer, 1).data; }    ///< [f, d]
  const void* down(std::int64_t layer) const { return matrix(layer, 2).data; }  ///< [f, d]
  const void* x() const { return x_.data(); }                                   ///< [M, d]

  skim::ffn_args args(std::int64_t layer) const {
    skim::ffn_args args;
    args.x = {x(), {shape.M, shape.d}, type};
    args.gate = matrix(layer, 0);
    args.up = matrix(layer, 1);
    args.down = matrix(layer, 2);
    args.first_block = 1;  // neither the prompt's first nor its last
    return args;
  }

  skim::fastforward fastforward(std::int64_t layer, double share) const {
    skim::fastforward policy{skim::neuron_retention::share(share), {}, {}};
    policy.predictor = {{matrix(layer, 3).data, {shape.d}, type}, matrix(layer, 4), matrix(layer, 5)};
    policy.compensator.c1 = matrix(layer, 6);
    policy.compensator.c2 = matrix(layer, 7);
    return policy;
  }

  const ffn_shape shape;
  const skim::element type;

 private:
  using matrix_view = skim::tensor_view<void, 2>;

  std::int64_t rank() const { return skim::predictor_rank(shape.d); }
  std::int64_t width() const { return skim::compensator_width(shape.d); }

  /// The parts of a layer, one behind the other: gate, up, down, query, w1, w2, c1, c2.
  matrix_view matrix(std::int64_t layer, std::int64_t part) const {
    const std::int64_t d = shape.d, f = shape.f, r = rank(), c = width();
    const std::int64_t sizes[][2] = {{f, d}, {f, d}, {f, d}, {1, d}, {d, r}, {r, f}, {d, c}, {c, d}};
    std::int64_t offset = 0;
    for (std::int64_t before = 0; before < part; ++before) offset += sizes[before][0] * sizes[before][1];
    char* const at = weights_.as<char>() + layer * layer_bytes(shape, type);
    return {at + skim::bytes_of(type, offset), {sizes[part][0], sizes[part][1]}, type};
  }

  static std::int64_t layer_bytes(const ffn_shape& of, skim::element type) {
    const std::int64_t r = skim::predictor_rank(of.d), c = skim::compensator_width(of.d);
    const std::int64_t elements = 3 * of.d * of.f + of.d + r * (of.d + of.f) + 2 * of.d * c;
    return (skim::bytes_of(type, elements) + 63) / 64 * 64;
  }

  /// Rows out of one table of normal values, each from another place: drawing billions of them would take minutes.
  static void fill(const matrix_view& to, float scale, std::uint32_t seed, const skim::tbb_executor& executor) {
    static const std::vector<float> table = [] {
      std::mt19937 generator(1);
      std::normal_distribution<float> normal;
      std::vector<float> values(1 << 20);
      for (float& value : values) value = normal(generator);
      return values;
    }();
    executor.parallel_for(to.extents[0], [&](std::int64_t row, unsigned) {
      std::seed_seq place{seed, static_cast<std::uint32_t>(row)};
      std::minstd_rand generator(place);
      const std::size_t columns = static_cast<std::size_t>(to.extents[1]);
      const float* const from = table.data() + generator() % (table.size() - columns);
      for (std::int64_t i = 0; i < to.extents[1]; ++i) {
        skim::store_element(to.data, to.type, to.offset(row, i), scale * from[i]);
      }
    });
  }

  skim::buffer weights_, x_;
};

/// The FFN of one layer as another library computes it, on weights that it has arranged as it likes: out [M, d].
using ffn_call = std::function<void(std::int64_t layer, void* out)>;

/// A library beside which skim's FFN is measured.
struct ffn_peer {
  const char* name;                                                                ///< in names of rows
  ffn_call (*make)(const ffn_layers& layers, const skim::tbb_executor& executor);  ///< throws what it cannot do
  bool f32_only;
};

ffn_peer onednn_peer();
ffn_peer openblas_peer();
ffn_peer eigen_peer();

/// values [count] = silu(gate) * values, in f32.
void multiply_by_silu(const float* gate, float* values, std::int64_t count);

}  // namespace bench
