// SPDX-License-Identifier: Apache-2.0
/// \file A decoder model as Hugging Face stores it: `config.json` and `model.safetensors`, or the files of its index.
#pragma once

#include <skim/interop/fitted_fastforward.hpp>

SKIM_INTRINSICS_BEGIN
#include <Eigen/Core>
SKIM_INTRINSICS_END

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace needle {

/// Row-major, so that a token's features, and an output feature's weights, are contiguous.
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using row = Eigen::RowVectorXf;

inline constexpr std::int64_t largest_size = 1 << 24;  ///< of any one extent; keeps products of two below 2^63

/// Widths: d = the model's, f = the FFN's, D = a head's.
struct model_config {
  std::string architecture;
  std::int64_t d = 0, f = 0, D = 0;
  std::int64_t query_heads = 0, kv_heads = 0;
  std::int64_t layers = 0, vocabulary = 0;
  float norm_epsilon = 0;
  double rope_theta = 0;
  bool qkv_bias = false;
  bool tied_output = false;  ///< the output head is the embedding
  bool qk_norm = false;      ///< queries and keys are normalised, head by head, before they turn
  bool post_norms = false;   ///< what attention and the FFN give is normalised before it is added
  skim::activation activation = skim::activation::silu;
  float embedding_scale = 1;
  float attention_scale = 0;  ///< of query times key; 0 = 1 / sqrt(D)
  /// Of layers with a window: the tokens that a query sees, its own included; their own base, unscaled.
  std::int64_t window = 0;
  double window_theta = 0;
  std::vector<bool> windowed;     ///< [layers], or empty: none is
  std::vector<float> rope_scale;  ///< [D / 2], what the angles of layers without a window are multiplied by; or empty

  bool has_window(std::int64_t layer) const { return !windowed.empty() && windowed[static_cast<std::size_t>(layer)]; }
};

/// Reads the text of a `config.json`. Throws `error` on anything that the engine would compute wrongly.
model_config parse_config(const std::string& text);

/// Weights are [out features, in features], as stored but for `down`, widened to f32.
struct layer_weights {
  row attention_norm;                      // [d]
  matrix qkv;                              // [(Hq + 2 Hk) D, d]: queries, keys, values
  row qkv_bias;                            // [(Hq + 2 Hk) D], or empty
  row query_norm, key_norm;                // [D], or empty
  matrix out;                              // [d, Hq D]
  row attention_post_norm, ffn_post_norm;  // [d], or empty
  row ffn_norm;                            // [d]
  matrix gate, up;                         // [f, d]
  matrix down;                             // [f, d]: transposed, a row for each neuron
};

struct model {
  model_config config;
  matrix embedding;  // [vocabulary, d]
  std::vector<layer_weights> layers;
  row norm;                              // [d]
  matrix head;                           // [vocabulary, d], empty if tied
  skim::calibrate::fitted_model fitted;  // without layers where the directory has no fastforward.safetensors

  const matrix& output() const { return config.tied_output ? embedding : head; }
};

/// The file in a model's directory that `needle calibrate` writes.
inline constexpr const char* fitted_file = "fastforward.safetensors";

/// Reads the files of a directory; throws `error`.
model read_model(const std::filesystem::path& directory);

}  // namespace needle
