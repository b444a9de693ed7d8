// SPDX-License-Identifier: Apache-2.0
#include "../gguf_model.hpp"

#include "../error.hpp"
#include "tiny_gguf.hpp"
#include "widened.hpp"

#include <functional>

namespace {

using needle::layer_weights;
using needle::model;
using needle_test::temporary_folder;
using needle_test::tiny_gguf;
using needle_test::tiny_model;
using needle_test::widened;

model read(const tiny_gguf& tiny) {
  struct held {
    std::string bytes;
    skim::gguf::file file;
  };
  const auto memory = std::make_shared<held>(held{tiny.bytes(), {}});
  memory->file = skim::gguf::file::view(memory->bytes.data(), memory->bytes.size());
  return needle::read_model(std::shared_ptr<const skim::gguf::file>(memory, &memory->file));
}

void expect_same(const model& a, const model& b) {
  EXPECT_EQ(widened(a.embedding), widened(b.embedding));
  EXPECT_EQ(widened(a.output()), widened(b.output()));
  EXPECT_EQ(a.norm, b.norm);
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (std::size_t i = 0; i < a.layers.size(); ++i) {
    EXPECT_EQ(a.layers[i].attention_norm, b.layers[i].attention_norm);
    EXPECT_EQ(a.layers[i].ffn_norm, b.layers[i].ffn_norm);
    for (const auto part : {&layer_weights::q, &layer_weights::k, &layer_weights::v, &layer_weights::out,
                            &layer_weights::gate, &layer_weights::up, &layer_weights::down}) {
      EXPECT_EQ(widened(a.layers[i].*part), widened(b.layers[i].*part));
    }
  }
}

TEST(gguf_model, is_the_model_that_safetensors_hold) {
  const temporary_folder folder;
  const tiny_model tiny;
  tiny.write(folder.path());
  const model expected = needle::read_model(folder.path()), found = read(tiny_gguf(tiny));
  expect_same(found, expected);
  EXPECT_EQ(found.config.d, 12);
  EXPECT_EQ(found.config.f, 20);
  EXPECT_EQ(found.config.D, 8);
  EXPECT_EQ(found.config.query_heads, 6);
  EXPECT_EQ(found.config.kv_heads, 2);
  EXPECT_EQ(found.config.vocabulary, 1100);
  EXPECT_EQ(found.config.rope_theta, 10000);
  EXPECT_FLOAT_EQ(found.config.norm_epsilon, 1e-5f);
}

TEST(gguf_model, of_qwen2_has_biases_and_halves_as_they_are) {
  tiny_model tiny;
  tiny_gguf file(tiny);
  file.architecture = "qwen2";
  for (const std::string layer : {"0", "1"}) {
    for (const auto& [part, rows] : {std::pair("q", 48), std::pair("k", 16), std::pair("v", 16)})
      tiny.add("blk." + layer + ".attn_" + part + ".bias", "F32", {rows});
  }
  for (const auto& [name, tensor] : tiny.tensors) {
    if (name.find("blk.") == 0) file.tensors[name] = tensor;
  }
  const model found = read(file);
  EXPECT_TRUE(found.config.qkv_bias);
  EXPECT_EQ(widened(found.layers[1].k)(2, 3), file.tensors.at("blk.1.attn_k.weight").values[2 * 12 + 3])
      << "not turned";
  EXPECT_EQ(found.layers[1].k_bias(2), file.tensors.at("blk.1.attn_k.bias").values[2]);
}

TEST(gguf_model, may_share_its_embedding_with_the_output) {
  tiny_gguf file{tiny_model()};
  file.tensors.erase("output.weight");
  const model found = read(file);
  EXPECT_TRUE(found.config.tied_output);
  EXPECT_EQ(&found.output(), &found.embedding);
}

std::string complaint(const std::function<void(tiny_gguf&)>& spoil) {
  tiny_gguf file{tiny_model()};
  spoil(file);
  try {
    read(file);
  } catch (const needle::error& problem) {
    return problem.what();
  }
  return "nothing";
}

TEST(gguf_model, what_the_engine_would_compute_wrongly_is_refused) {
  EXPECT_EQ(complaint([](tiny_gguf&) {}), "nothing");
  EXPECT_EQ(complaint([](tiny_gguf& f) { f.architecture = "gemma4"; }),
            "architecture 'gemma4' is not supported (llama, qwen2, qwen3 and gemma3 are)");
  EXPECT_EQ(complaint([](tiny_gguf& f) { f.architecture = "gemma3"; }), "there is no tensor blk.0.attn_q_norm.weight");
  const auto with = [](const char* name, std::uint32_t value) {
    return complaint([&](tiny_gguf& f) {
      for (needle_test::tiny_gguf::setting& each : f.settings) {
        if (each.name == name) return void(each.value = value);
      }
      f.settings.push_back({name, value});
    });
  };
  EXPECT_EQ(with("embedding_length", 0), "llama.embedding_length is not a whole number from 1 to 16777216");
  EXPECT_EQ(with("block_count", 4000000000u), "llama.block_count is not a whole number from 1 to 16777216");
  EXPECT_EQ(with("block_count", 3), "there is no tensor blk.2.attn_norm.weight");
  EXPECT_EQ(with("block_count", 1), "tensor 'blk.1.attn_k.weight' has no place in what the settings describe");
  EXPECT_EQ(with("attention.head_count_kv", 4), "attention.head_count is no multiple of attention.head_count_kv");
  EXPECT_EQ(with("attention.head_count_kv", 3), "tensor blk.0.attn_k.weight has another shape than the settings imply");
  EXPECT_EQ(with("rope.dimension_count", 4), "heads are not of one even size of at most 4096, all of which is turned");
  EXPECT_EQ(with("attention.value_length", 4),
            "heads are not of one even size of at most 4096, all of which is turned");
  EXPECT_EQ(with("rope.scaling.type", 7), "llama.rope.scaling.type is not supported");
  EXPECT_EQ(with("rope.scaling.factor", 4), "llama.rope.scaling.factor is not supported");
  EXPECT_EQ(with("rope.scale_linear", 4), "llama.rope.scale_linear is not supported");
  EXPECT_EQ(with("rope.scaling.factor", 1), "nothing");
  EXPECT_EQ(with("expert_count", 8), "llama.expert_count is not supported");
  EXPECT_EQ(with("rope.freq_base", 0), "llama.rope.freq_base is out of range");
  EXPECT_EQ(complaint([](tiny_gguf& f) { f.tensors.erase("output_norm.weight"); }),
            "there is no tensor output_norm.weight");
  const auto with_divisors = [](std::vector<float> divisors) {
    return complaint([&](tiny_gguf& f) {
      f.tensors["rope_freqs.weight"] = {"F32", {static_cast<std::int64_t>(divisors.size())}, divisors};
    });
  };
  EXPECT_EQ(with_divisors({1, 1, 2, 8}), "nothing");
  EXPECT_EQ(with_divisors({1, 1, 0, 8}), "tensor rope_freqs.weight has numbers that are not positive");
  EXPECT_EQ(with_divisors({1, 1, 2}), "tensor rope_freqs.weight has another shape than the settings imply");
  EXPECT_EQ(complaint([](tiny_gguf& f) { f.tensors.erase("token_embd.weight"); }),
            "there is no tensor token_embd.weight with rows");
}

}  // namespace
