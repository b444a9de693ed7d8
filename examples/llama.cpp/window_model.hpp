// SPDX-License-Identifier: Apache-2.0
/// \file A model that means nothing, with sliding windows: Gemma 3's architecture, two layers of three with a window.
#pragma once

#include <ggml.h>
#include <gguf.h>

#include <cstdint>
#include <string>

namespace skim_llama {

/// Writes it as a .gguf of f32 weights, which are the same each time. False where the file cannot be written.
inline bool write_window_model(const std::string& path, unsigned window) {
  constexpr int width = 128, heads = 4, kv_heads = 2, head = 64, neurons = 256, layers = 6, vocabulary = 2200;
  ggml_context* const made = ggml_init({std::size_t{16} << 20, nullptr, false});
  gguf_context* const file = gguf_init_empty();
  std::uint32_t seed = 1;
  const auto add = [&](const std::string& name, std::int64_t inputs, std::int64_t rows) {
    ggml_tensor* const tensor = rows == 0 ? ggml_new_tensor_1d(made, GGML_TYPE_F32, inputs)
                                          : ggml_new_tensor_2d(made, GGML_TYPE_F32, inputs, rows);
    float* const values = static_cast<float*>(tensor->data);
    for (std::int64_t i = 0; i < ggml_nelements(tensor); ++i) {
      seed = seed * 1664525u + 1013904223u;
      const float draw = static_cast<float>(seed >> 8) / 16777216.0f - 0.5f;
      values[i] = rows == 0 ? 1 + 0.2f * draw : 0.3f * draw;  // a norm's scale, a product's weight
    }
    ggml_set_name(tensor, (name + ".weight").c_str());
    gguf_add_tensor(file, tensor);
  };
  const auto number = [&](const char* key, std::uint32_t value) {
    gguf_set_val_u32(file, (std::string("gemma3.") + key).c_str(), value);
  };
  gguf_set_val_str(file, "general.architecture", "gemma3");
  gguf_set_val_str(file, "tokenizer.ggml.model", "none");
  number("vocab_size", vocabulary);
  number("context_length", 8192);
  number("embedding_length", width);
  number("block_count", layers);
  number("feed_forward_length", neurons);
  number("attention.head_count", heads);
  number("attention.head_count_kv", kv_heads);
  number("attention.key_length", head);
  number("attention.value_length", head);
  number("attention.sliding_window", window);
  number("attention.sliding_window_pattern", 3);
  gguf_set_val_f32(file, "gemma3.attention.layer_norm_rms_epsilon", 1e-6f);
  add("token_embd", width, vocabulary);
  add("output_norm", width, 0);
  for (int layer = 0; layer < layers; ++layer) {
    const auto part = [&](const char* name, std::int64_t inputs, std::int64_t rows) {
      add("blk." + std::to_string(layer) + "." + name, inputs, rows);
    };
    part("attn_norm", width, 0);
    part("attn_q", width, heads * head);
    part("attn_k", width, kv_heads * head);
    part("attn_v", width, kv_heads * head);
    part("attn_output", heads * head, width);
    part("attn_q_norm", head, 0);
    part("attn_k_norm", head, 0);
    part("post_attention_norm", width, 0);
    part("ffn_norm", width, 0);
    part("ffn_gate", width, neurons);
    part("ffn_up", width, neurons);
    part("ffn_down", neurons, width);
    part("post_ffw_norm", width, 0);
  }
  const bool written = gguf_write_to_file(file, path.c_str(), false);
  gguf_free(file);
  ggml_free(made);
  return written;
}

}  // namespace skim_llama
