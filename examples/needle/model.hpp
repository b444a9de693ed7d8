// SPDX-License-Identifier: Apache-2.0
/// \file A decoder model as Hugging Face stores it: `config.json` and `model.safetensors`, or the files of its index.
#pragma once

#include <skim/buffer.hpp>
#include <skim/interop/fitted_fastforward.hpp>

SKIM_INTRINSICS_BEGIN
#include <Eigen/Core>
SKIM_INTRINSICS_END

#include <cstdint>
#include <filesystem>
#include <memory>
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
  std::int64_t trained_positions = 0;  ///< beyond them nobody knows what the model does; 0 = its file does not say
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

/// A matrix in the type that its file has: where the file is mapped, or on memory of its own.
struct stored_matrix {
  skim::tensor_view<const void, 2> view;
  std::shared_ptr<skim::buffer> own;  ///< null: the model's file holds it

  /// Memory of its own, for rows that are not stored as they are used.
  static stored_matrix reserve(std::int64_t rows, std::int64_t columns, skim::element type);
  skim::tensor_view<void, 2> to_fill() const { return {own->data(), view.extents, view.type}; }

  std::int64_t rows() const { return view.extents[0]; }
  /// target [columns] = row `index`.
  void widen(std::int64_t index, float* target) const;
};

/// The matrix on its side, on memory of its own.
stored_matrix transposed(const stored_matrix& from);

/// The three in f32 where they are not of one type, which the library's FFN asks for.
void unite_types(stored_matrix& a, stored_matrix& b, stored_matrix& c);

/// Weights are [out features, in features], as stored but for `down`.
struct layer_weights {
  row attention_norm;                      // [d]
  stored_matrix q, k, v;                   // [Hq D, d], [Hk D, d] twice
  row q_bias, k_bias, v_bias;              // as long, or empty
  row query_norm, key_norm;                // [D], or empty
  stored_matrix out;                       // [d, Hq D]
  row attention_post_norm, ffn_post_norm;  // [d], or empty
  row ffn_norm;                            // [d]
  stored_matrix gate, up;                  // [f, d]
  stored_matrix down;                      // [f, d]: transposed, a row for each neuron
};

struct model {
  model_config config;
  std::shared_ptr<const void> file;  // which is mapped
  stored_matrix embedding;           // [vocabulary, d]
  std::vector<layer_weights> layers;
  row norm;                              // [d]
  stored_matrix head;                    // [vocabulary, d], empty if tied
  skim::calibrate::fitted_model fitted;  // without layers where there is no fastforward.safetensors

  const stored_matrix& output() const { return config.tied_output ? embedding : head; }
};

/// The file in a model's directory that `needle calibrate` writes.
inline constexpr const char* fitted_file = "fastforward.safetensors";

/// Takes fitted parts from a file, if it is there; throws `error` where they are another model's.
void read_fitted(const std::filesystem::path& path, model& into);

/// Reads the files of a directory; throws `error`.
model read_model(const std::filesystem::path& directory);

}  // namespace needle
