// SPDX-License-Identifier: Apache-2.0
#include "../model.hpp"

#include "../error.hpp"
#include "tiny_model.hpp"
#include "widened.hpp"

namespace {

using needle::model;
using needle::model_config;
using needle::parse_config;
using needle::read_model;
using needle_test::temporary_folder;
using needle_test::tiny_model;
using needle_test::widened;

/// What `action` complains about, or "nothing".
template <class Action>
std::string complaint_of(const Action& action) {
  try {
    action();
  } catch (const needle::error& problem) {
    return problem.what();
  }
  return "nothing";
}

TEST(config, reads_what_the_engine_needs) {
  const model_config c = parse_config(tiny_model().config.dump());
  EXPECT_EQ(c.architecture, "LlamaForCausalLM");
  EXPECT_EQ(c.d, 12);
  EXPECT_EQ(c.f, 20);
  EXPECT_EQ(c.D, 8);
  EXPECT_EQ(c.query_heads, 6);
  EXPECT_EQ(c.kv_heads, 2);
  EXPECT_EQ(c.layers, 2);
  EXPECT_EQ(c.vocabulary, 1100);
  EXPECT_EQ(c.rope_theta, 10000);
  EXPECT_FLOAT_EQ(c.norm_epsilon, 1e-6f);
  EXPECT_FALSE(c.qkv_bias);
  EXPECT_FALSE(c.tied_output);
}

TEST(config, absent_fields_mean_what_they_mean_to_hugging_face) {
  nlohmann::json config = tiny_model().config;
  for (const char* name : {"num_key_value_heads", "head_dim", "tie_word_embeddings", "rms_norm_eps", "hidden_act"}) {
    config.erase(name);
  }
  config["rope_scaling"] = nullptr;
  const model_config c = parse_config(config.dump());
  EXPECT_EQ(c.kv_heads, 6);
  EXPECT_EQ(c.D, 2);
  EXPECT_FALSE(c.tied_output);
  EXPECT_FLOAT_EQ(c.norm_epsilon, 1e-6f);
}

TEST(config, the_rotation_base_may_stand_among_its_parameters) {
  nlohmann::json config = tiny_model().config;
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 500000}};
  EXPECT_EQ(parse_config(config.dump()).rope_theta, 500000);
}

TEST(config, gemma_says_which_layers_have_a_window) {
  nlohmann::json config = tiny_model().config;
  config["architectures"] = {"Gemma3ForCausalLM"};
  config["hidden_activation"] = "gelu_pytorch_tanh";
  config["sliding_window"] = 5;
  config.erase("tie_word_embeddings");
  const auto with = [&](const char* field, const nlohmann::json& value) {
    nlohmann::json changed = config;
    changed[field] = value;
    return changed.dump();
  };
  EXPECT_EQ(parse_config(config.dump()).windowed, std::vector<bool>({true, true}));  // every sixth has none
  EXPECT_EQ(parse_config(with("sliding_window_pattern", 2)).windowed, std::vector<bool>({true, false}));
  const std::vector<std::string> kinds = {"full_attention", "sliding_attention"};
  EXPECT_EQ(parse_config(with("layer_types", kinds)).windowed, std::vector<bool>({false, true}));
  EXPECT_EQ(parse_config(config.dump()).window, 5);
  EXPECT_TRUE(parse_config(config.dump()).tied_output);
  const auto complaint = [&](const char* field, const nlohmann::json& value) {
    return complaint_of([&] { parse_config(with(field, value)); });
  };
  EXPECT_EQ(complaint("layer_types", {"full_attention"}),
            "config.json: layer_types [\"full_attention\"] is no list of as many kinds as there are layers");
  EXPECT_EQ(complaint("layer_types", {"full_attention", "chunked_attention"}),
            "config.json: layer_types has \"chunked_attention\", expected \"full_attention\" or \"sliding_attention\"");
  EXPECT_EQ(complaint("final_logit_softcapping", 30),
            "config.json: final_logit_softcapping 30 is not supported (only null is)");
  EXPECT_EQ(complaint("sliding_window", 0),
            "config.json: sliding_window is 0, expected a whole number from 1 to 16777216");
  EXPECT_EQ(
      complaint("rope_parameters", {{"full_attention", {{"rope_type", "default"}}},
                                    {"sliding_attention", {{"rope_type", "linear"}, {"factor", 2}}}}),
      "config.json: rope_parameters {\"factor\":2,\"rope_type\":\"linear\"} is not supported (layers with a window are "
      "not scaled)");
}

struct spoiled_config {
  const char* field;
  const char* value;  ///< JSON, or "absent"
  const char* complaint;
};

class refused_config : public testing::TestWithParam<spoiled_config> {};

TEST_P(refused_config, in_one_line_that_names_the_field) {
  nlohmann::json config = tiny_model().config;
  const spoiled_config& spoiled = GetParam();
  if (std::string(spoiled.value) == "absent") {
    config.erase(spoiled.field);
  } else {
    config[spoiled.field] = nlohmann::json::parse(spoiled.value);
  }
  const std::string complaint = complaint_of([&] { parse_config(config.dump()); });
  EXPECT_NE(complaint.find(spoiled.complaint), std::string::npos) << complaint;
  EXPECT_EQ(complaint.find('\n'), std::string::npos);
  EXPECT_LT(complaint.size(), 300u);
}

INSTANTIATE_TEST_SUITE_P(
    fields, refused_config,
    testing::Values(
        spoiled_config{"architectures", R"(["MistralForCausalLM"])", "architectures [\"MistralForCausalLM\"] are not"},
        spoiled_config{"architectures", "absent", "architectures [] are not supported"},
        spoiled_config{"architectures", R"(["LlamaForCausalLM","Qwen2ForCausalLM"])", "are not supported"},
        spoiled_config{"architectures", "5", "architectures 5 are not supported"},
        spoiled_config{"hidden_act", "\"gelu\"", "hidden_act \"gelu\" is not supported (only \"silu\" is)"},
        spoiled_config{"attention_bias", "true", "attention_bias true is not supported"},
        spoiled_config{"mlp_bias", "true", "mlp_bias true is not supported"},
        spoiled_config{"use_sliding_window", "true", "use_sliding_window true is not supported"},
        spoiled_config{"partial_rotary_factor", "0.5", "partial_rotary_factor 0.5 is not supported"},
        spoiled_config{"quantization_config", "{}", "quantized weights are not supported"},
        spoiled_config{"rope_scaling", R"({"type":"dynamic","factor":2})",
                       "is not supported (\"default\", \"linear\" and \"llama3\" are)"},
        spoiled_config{"rope_scaling", R"({"type":"linear"})", "rope_scaling has no factor"},
        spoiled_config{"rope_scaling", R"({"type":"linear","factor":0})", "factor is 0, expected a number from"},
        spoiled_config{"rope_scaling", R"({"rope_type":"llama3","factor":8,"low_freq_factor":4})", "not above its low"},
        spoiled_config{"rope_scaling", "[]", "rope_scaling [] is not supported"},
        spoiled_config{"rope_parameters", R"({"rope_type":"yarn"})", "rope_parameters {"},
        spoiled_config{"rope_theta", "0", "rope_theta is 0, expected a number from 1.0 to 1000000000000.0"},
        spoiled_config{"rope_theta", "5e-324", "rope_theta is 5e-324, expected a number from"},
        spoiled_config{"rope_theta", "1e300", "rope_theta is 1e+300, expected a number from"},
        spoiled_config{"rope_parameters", R"({"rope_theta":1e-9})", "rope_theta is 1e-09, expected a number from"},
        spoiled_config{"rope_theta", "\"big\"", "rope_theta is \"big\", expected a number"},
        spoiled_config{"rms_norm_eps", "-1", "rms_norm_eps is -1"},
        spoiled_config{"rms_norm_eps", "1e39", "rms_norm_eps is 1e+39, expected a number from 1e-20 to 1.0"},
        spoiled_config{"rms_norm_eps", "5e-324", "rms_norm_eps is 5e-324, expected a number from"},
        spoiled_config{"hidden_act", "\"\\u001b[31m\\u007f\"", "hidden_act \"\\u001b[31m\\u007f\" is not supported"},
        spoiled_config{"hidden_size", "absent", "there is no hidden_size"},
        spoiled_config{"hidden_size", "0", "hidden_size is 0, expected a whole number from 1"},
        spoiled_config{"hidden_size", "-12", "hidden_size is -12"},
        spoiled_config{"hidden_size", "12.5", "hidden_size is 12.5"},
        spoiled_config{"hidden_size", "1e30", "hidden_size is 1e+30"},
        spoiled_config{"num_hidden_layers", "18446744073709551615", "num_hidden_layers is 18446744073709551615"},
        spoiled_config{"intermediate_size", "null", "there is no intermediate_size"},
        spoiled_config{"vocab_size", "[[[[1]]]]", "vocab_size is [[[[1]]]]"},
        spoiled_config{"num_key_value_heads", "4", "num_attention_heads 6 is no multiple of num_key_value_heads 4"},
        spoiled_config{"head_dim", "7", "head_dim is 7, expected an even number"},
        spoiled_config{"head_dim", "5000", "head_dim is 5000, expected an even number of at most 4096"},
        spoiled_config{"num_attention_heads", "16777216", "too large"},
        spoiled_config{"tie_word_embeddings", "\"yes\"", "tie_word_embeddings is \"yes\", expected true or false"}));

TEST(config, refuses_what_is_no_object) {
  for (const char* text : {"", "{", "[]", "nonsense", "\xff\xfe", "{\"hidden_size\": 12"}) {
    EXPECT_EQ(complaint_of([&] { parse_config(text); }), "config.json: not a JSON object") << text;
  }
}

TEST(config, nests_to_a_small_depth) {
  nlohmann::json config = tiny_model().config, lists = 1;
  for (int depth = 1; depth < 16; ++depth) lists = nlohmann::json::array({lists});
  config["of_no_use"] = lists;
  EXPECT_EQ(complaint_of([&] { parse_config(config.dump()); }), "nothing");
  for (const std::string& text : {std::string(20'000'000, '['), R"({"a":)" + std::string(20'000'000, '['),
                                  R"({"a":{"b":)" + std::string(100, '[')}) {
    EXPECT_EQ(complaint_of([&] { parse_config(text); }), "config.json: nests deeper than 16 levels");
  }
}

TEST(config, a_file_longer_than_any_config_is_not_read) {
  const temporary_folder folder;
  std::ofstream(folder.path() / "config.json") << std::string((1 << 20) + 1, ' ');
  EXPECT_EQ(complaint_of([&] { read_model(folder.path()); }),
            (folder.path() / "config.json").string() + ": has more than the 1048576 bytes that are read");
}

TEST(weights, of_every_type_are_kept_as_they_are) {
  const temporary_folder folder;
  const tiny_model tiny;
  tiny.write(folder.path());
  const model read = read_model(folder.path());
  const auto matches = [&](const needle::stored_matrix& weights, const char* name) {
    const std::vector<float>& values = tiny.tensors.at(name).values;
    const needle::matrix found = widened(weights);
    return !weights.own && std::equal(values.begin(), values.end(), found.data(), found.data() + found.size());
  };
  EXPECT_TRUE(matches(read.embedding, "model.embed_tokens.weight"));
  EXPECT_TRUE(matches(read.head, "lm_head.weight"));
  EXPECT_TRUE(matches(read.layers[1].out, "model.layers.1.self_attn.o_proj.weight"));
  EXPECT_TRUE(matches(read.layers[1].q, "model.layers.1.self_attn.q_proj.weight"));
  EXPECT_TRUE(matches(read.layers[1].k, "model.layers.1.self_attn.k_proj.weight"));
  EXPECT_TRUE(matches(read.layers[1].v, "model.layers.1.self_attn.v_proj.weight"));
  EXPECT_EQ(read.layers[0].q_bias.size(), 0);
}

TEST(weights, qwen2_has_biases) {
  const temporary_folder folder;
  tiny_model tiny;
  tiny.config["architectures"] = {"Qwen2ForCausalLM"};
  tiny.write(folder.path());
  EXPECT_NE(complaint_of([&] { read_model(folder.path()); }).find("self_attn.q_proj.bias"), std::string::npos);
  for (const char* layer : {"model.layers.0.", "model.layers.1."}) {
    tiny.add(layer + std::string("self_attn.q_proj.bias"), "BF16", {48});
    tiny.add(layer + std::string("self_attn.k_proj.bias"), "F16", {16});
    tiny.add(layer + std::string("self_attn.v_proj.bias"), "F32", {16});
  }
  tiny.write(folder.path());
  const model read = read_model(folder.path());
  EXPECT_EQ(read.layers[1].q_bias.size(), 48);
  EXPECT_EQ(read.layers[1].k_bias(0), tiny.tensors["model.layers.1.self_attn.k_proj.bias"].values[0]);
}

TEST(weights, a_checkpoint_that_does_not_fit_its_config_is_refused) {
  const temporary_folder folder;
  const auto complaint = [&](const tiny_model& tiny) {
    tiny.write(folder.path());
    return complaint_of([&] { read_model(folder.path()); });
  };
  const std::string file = (folder.path() / "model.safetensors").string() + ": ";
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  tiny_model tiny;
  tiny.tensors.erase(name);
  EXPECT_EQ(complaint(tiny), file + "there is no tensor " + name);
  tiny.add(name, "F32", {12, 20});
  EXPECT_EQ(complaint(tiny), file + "tensor " + name + " is [12,20], config.json implies [20,12]");
  tiny.add(name, "F32", {20, 12});
  tiny.tensors[name].dtype = "I16";
  EXPECT_EQ(complaint(tiny),
            file + "tensor " + name + " has elements of type \"I16\", expected F32, F16 or BF16, aligned");
  tiny.tensors[name].dtype = "F32";
  EXPECT_EQ(complaint(tiny), "nothing");
  tiny.config["num_hidden_layers"] = 3;
  EXPECT_EQ(complaint(tiny), file + "there is no tensor model.layers.2.input_layernorm.weight");
  tiny.config["num_hidden_layers"] = 1;
  EXPECT_EQ(complaint(tiny), file +
                                 "tensor \"model.layers.1.input_layernorm.weight\" has no place in what config.json "
                                 "describes (LlamaForCausalLM, num_hidden_layers 1)");
  tiny.config["num_hidden_layers"] = 2;
  tiny.add("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", {4});
  EXPECT_EQ(complaint(tiny), "nothing");
  tiny.add("model.layers.0.self_attn.q_proj.bias", "F32", {48});
  EXPECT_NE(complaint(tiny).find("q_proj.bias\" has no place"), std::string::npos);
  tiny.tensors.erase("model.layers.0.self_attn.q_proj.bias");
  tiny.config["hidden_act"] = "relu";
  EXPECT_EQ(complaint(tiny),
            (folder.path() / "config.json").string() + ": hidden_act \"relu\" is not supported (only \"silu\" is)");
}

TEST(weights, absent_files_are_named) {
  const temporary_folder folder;
  const std::string path = folder.path().string();
  EXPECT_EQ(complaint_of([&] { read_model(folder.path()); }), path + "/config.json: cannot be opened");
  std::ofstream(folder.path() / "config.json") << tiny_model().config;
  EXPECT_EQ(complaint_of([&] { read_model(folder.path()); }),
            path + ": has neither model.safetensors nor model.safetensors.index.json");
}

TEST(weights, may_lie_in_files_of_an_index) {
  const temporary_folder folder;
  const tiny_model tiny;
  tiny.write(folder.path());
  const model whole = read_model(folder.path());
  std::filesystem::rename(folder.path() / "model.safetensors", folder.path() / "part.safetensors");
  nlohmann::json index;
  for (const auto& [name, tensor] : tiny.tensors) index["weight_map"][name] = "part.safetensors";
  std::ofstream(folder.path() / "model.safetensors.index.json") << index;
  const model parts = read_model(folder.path());
  EXPECT_EQ(widened(parts.embedding), widened(whole.embedding));
  EXPECT_EQ(widened(parts.layers.back().down), widened(whole.layers.back().down));
}

}  // namespace
