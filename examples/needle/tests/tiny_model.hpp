// SPDX-License-Identifier: Apache-2.0
/// \file A small model with random weights, written as Hugging Face would, that a test can spoil in one place.
#pragma once

#include <skim/types.hpp>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace needle_test {

/// A folder of its own for each test, removed at the end.
class temporary_folder {
 public:
  temporary_folder() {
    const auto* const test = testing::UnitTest::GetInstance()->current_test_info();
    std::string name = std::string("needle_") + test->test_suite_name() + "_" + test->name();
    for (char& c : name) c = c == '/' ? '_' : c;
    path_ = std::filesystem::path(testing::TempDir()) / name;
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~temporary_folder() { std::filesystem::remove_all(path_); }
  temporary_folder(const temporary_folder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

struct tiny_tensor {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

/// Two layers, d = 12, six query heads and two KV heads of 8, an output head of its own. Tensors of all three types.
struct tiny_model {
  nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                           {"hidden_act", "silu"},
                           {"hidden_size", 12},
                           {"intermediate_size", 20},
                           {"num_hidden_layers", 2},
                           {"num_attention_heads", 6},
                           {"num_key_value_heads", 2},
                           {"head_dim", 8},
                           {"vocab_size", 1100},
                           {"rms_norm_eps", 1e-6},
                           {"tie_word_embeddings", false}};
  std::map<std::string, tiny_tensor> tensors;

  tiny_model() {
    add("model.embed_tokens.weight", "F32", {1100, 12});
    for (int layer = 0; layer < 2; ++layer) {
      const std::string name = "model.layers." + std::to_string(layer) + ".";
      add(name + "input_layernorm.weight", "F32", {12});
      add(name + "self_attn.q_proj.weight", "BF16", {48, 12});
      add(name + "self_attn.k_proj.weight", "F16", {16, 12});
      add(name + "self_attn.v_proj.weight", "F32", {16, 12});
      add(name + "self_attn.o_proj.weight", "BF16", {12, 48});
      add(name + "post_attention_layernorm.weight", "BF16", {12});
      add(name + "mlp.gate_proj.weight", "F16", {20, 12});
      add(name + "mlp.up_proj.weight", "F32", {20, 12});
      add(name + "mlp.down_proj.weight", "BF16", {12, 20});
    }
    add("model.norm.weight", "F32", {12});
    add("lm_head.weight", "F16", {1100, 12});
  }

  /// Adds a tensor of random multiples of 1/16 in [-1, 1], which all three types hold exactly.
  void add(const std::string& name, const std::string& dtype, std::vector<std::int64_t> shape) {
    std::int64_t count = 1;
    for (const std::int64_t extent : shape) count *= extent;
    std::vector<float> values;
    for (std::int64_t i = 0; i < count; ++i) values.push_back(static_cast<float>(random_() % 33) / 16 - 1);
    tensors[name] = {dtype, std::move(shape), std::move(values)};
  }

  void write(const std::filesystem::path& folder) const {
    std::ofstream(folder / "config.json") << config.dump(2);
    nlohmann::json header = nlohmann::json::object();
    std::string data;
    for (const auto& [name, tensor] : tensors) {
      const std::size_t begin = data.size();
      for (const float value : tensor.values) append(data, value, tensor.dtype);
      header[name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
    }
    const std::string text = header.dump();
    std::ofstream file(folder / "model.safetensors", std::ios::binary);
    for (int i = 0; i < 8; ++i) file << static_cast<char>(text.size() >> (8 * i) & 0xff);
    file << text << data;
  }

 private:
  static void append(std::string& data, float value, const std::string& dtype) {
    char bytes[4] = {};
    if (dtype == "F32") {
      skim::store_element(bytes, skim::element::f32, 0, value);
    } else if (dtype == "F16") {
      skim::store_element(bytes, skim::element::f16, 0, value);
    } else {
      skim::store_element(bytes, skim::element::bf16, 0, value);
    }
    data.append(bytes, dtype == "F32" ? 4 : 2);
  }

  std::mt19937 random_{7};
};

}  // namespace needle_test
