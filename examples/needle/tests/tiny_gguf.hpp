// SPDX-License-Identifier: Apache-2.0
/// \file The tiny model as a GGUF file, with a vocabulary.
#pragma once

#include "support/gguf_builder.hpp"
#include "tiny_model.hpp"

#include <cstring>

namespace needle_test {

/// The tiny model as llama.cpp's converter would write it.
struct tiny_gguf {
  struct setting {
    std::string name;
    std::uint32_t value;
  };
  std::string architecture = "llama";
  bool talks = false;  ///< has ChatML's form of conversations
  std::vector<setting> settings = {
      {"embedding_length", 12},      {"feed_forward_length", 20},    {"block_count", 2},
      {"attention.head_count", 6},   {"attention.head_count_kv", 2}, {"attention.key_length", 8},
      {"attention.value_length", 8}, {"rope.dimension_count", 8}};
  std::map<std::string, tiny_tensor> tensors;

  explicit tiny_gguf(const tiny_model& of) {
    const std::pair<const char*, const char*> names[] = {
        {"input_layernorm", "attn_norm"}, {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"},
        {"self_attn.v_proj", "attn_v"},   {"self_attn.o_proj", "attn_output"}, {"post_attention_layernorm", "ffn_norm"},
        {"mlp.gate_proj", "ffn_gate"},    {"mlp.up_proj", "ffn_up"},           {"mlp.down_proj", "ffn_down"}};
    tensors["token_embd.weight"] = of.tensors.at("model.embed_tokens.weight");
    tensors["output_norm.weight"] = of.tensors.at("model.norm.weight");
    tensors["output.weight"] = of.tensors.at("lm_head.weight");
    for (const std::string layer : {"0", "1"}) {
      for (const auto& [theirs, here] : names) {
        tiny_tensor& made = tensors["blk." + layer + "." + here + ".weight"];
        made = of.tensors.at("model.layers." + layer + "." + theirs + ".weight");
        if (std::strcmp(here, "attn_q") == 0 || std::strcmp(here, "attn_k") == 0) interleave(made);
      }
    }
  }

  std::string bytes() const {
    skim_test::gguf_builder file;
    file.head(tensors.size(), settings.size() + (talks ? 6 : 4));
    file.text("general.architecture").add(std::uint32_t{8}).text(architecture);
    for (const setting& each : settings) file.number(architecture + "." + each.name, each.value);
    // Words of one sign, then words that no text has.
    std::vector<std::string> pieces;
    for (const char sign : std::string("abcdefghijklmnopqrstuvwxyz.0123456789")) pieces.emplace_back(1, sign);
    const std::size_t special = pieces.size();
    if (talks) pieces.insert(pieces.end(), {"<|im_start|>", "<|im_end|>"});
    while (pieces.size() < 1100) pieces.push_back("w" + std::to_string(pieces.size()));
    file.text("tokenizer.ggml.model").add(std::uint32_t{8}).text("llama").texts("tokenizer.ggml.tokens", pieces);
    file.numbers("tokenizer.ggml.scores", std::vector<float>(1100, -1));
    if (talks) {
      std::vector<float> types(1100, 1);
      types[special] = types[special + 1] = 3;
      file.numbers("tokenizer.ggml.token_type", types);
      file.text("tokenizer.chat_template").add(std::uint32_t{8}).text("<|im_start|>");
    }
    std::string data;
    for (const auto& [name, tensor] : tensors) {
      const std::vector<std::uint64_t> extents(tensor.shape.rbegin(), tensor.shape.rend());
      const skim::element type = tensor.dtype == "F32"   ? skim::element::f32
                                 : tensor.dtype == "F16" ? skim::element::f16
                                                         : skim::element::bf16;
      file.tensor(name, extents, type == skim::element::f32 ? 0 : type == skim::element::f16 ? 1 : 30, data.size());
      const std::size_t from = data.size(), count = tensor.values.size();
      data.resize(from +
                  (static_cast<std::size_t>(skim::bytes_of(type, static_cast<std::int64_t>(count))) + 31) / 32 * 32);
      for (std::size_t i = 0; i < count; ++i)
        skim::store_element(data.data() + from, type, static_cast<std::int64_t>(i), tensor.values[i]);
    }
    file.data(0);
    return file.bytes + data;
  }

 private:
  /// The two numbers of a head that turn together come to lie side by side.
  static void interleave(tiny_tensor& rows) {
    const std::vector<float> before = rows.values;
    const std::int64_t heads = rows.shape[0] / 8;
    for (std::int64_t head = 0; head < heads; ++head) {
      for (std::int64_t half = 0; half < 2; ++half) {
        for (std::int64_t i = 0; i < 4; ++i) {
          for (std::int64_t column = 0; column < 12; ++column) {
            rows.values[static_cast<std::size_t>((head * 8 + 2 * i + half) * 12 + column)] =
                before[static_cast<std::size_t>((head * 8 + half * 4 + i) * 12 + column)];
          }
        }
      }
    }
  }
};

}  // namespace needle_test
