// SPDX-License-Identifier: Apache-2.0
#include "model.hpp"

#include "error.hpp"

#include <skim/interop/fastforward_file.hpp>
#include <skim/interop/safetensors_shards.hpp>

#include <nlohmann/json.hpp>

#include <fstream>
#include <set>
#include <sstream>

namespace needle {
namespace {

using nlohmann::json;

constexpr int deepest = 16;  // lists in lists of a config.json; real ones have four levels
constexpr std::uintmax_t longest_config = 1 << 20;

[[noreturn]] void refuse(const std::string& problem) {
  throw error("config.json: " + problem);
}

/// A value as part of a one-line message.
std::string shown(const json& value) {
  const std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  return text.size() <= 60 ? text : text.substr(0, 60) + "...";
}

bool has(const json& config, const char* name) {
  return config.contains(name) && !config[name].is_null();
}

std::int64_t size_of(const json& config, const char* name, std::int64_t otherwise = 0) {
  if (!has(config, name)) {
    if (otherwise == 0) refuse(std::string("there is no ") + name);
    return otherwise;
  }
  const json& value = config[name];
  if (!value.is_number_unsigned() || value < 1 || value > largest_size) {
    refuse(std::string(name) + " is " + shown(value) + ", expected a whole number from 1 to " +
           std::to_string(largest_size));
  }
  return value.get<std::int64_t>();
}

struct range {
  double least, most;
};
constexpr range epsilons{1e-20, 1}, thetas{1, 1e12};  // far beyond any model's, and f32 still computes with them

double number_in(const range& valid, const json& config, const char* name, double otherwise) {
  if (!has(config, name)) return otherwise;
  const json& value = config[name];
  const double number = value.is_number() ? value.get<double>() : 0;
  if (!(number >= valid.least && number <= valid.most)) {
    refuse(std::string(name) + " is " + shown(value) + ", expected a number from " + shown(valid.least) + " to " +
           shown(valid.most));
  }
  return number;
}

/// Refuses a field that has any other value than `supported`, which is also what its absence means.
void require(const json& config, const char* name, const json& supported) {
  if (has(config, name) && config[name] != supported) {
    refuse(std::string(name) + " " + shown(config[name]) + " is not supported (only " + supported.dump() + " is)");
  }
}

bool flag(const json& config, const char* name, bool otherwise) {
  if (!has(config, name)) return otherwise;
  if (!config[name].is_boolean()) refuse(std::string(name) + " is " + shown(config[name]) + ", expected true or false");
  return config[name].get<bool>();
}

/// Rotation is unscaled only; newer files keep the base in `rope_parameters`, beside the kind of scaling.
double rope_theta(const json& config) {
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (!has(config, name)) continue;
    const json& rope = config[name];
    const json kind = !rope.is_object() ? rope : rope.value("rope_type", rope.value("type", json("default")));
    if (kind != "default") refuse(std::string(name) + " " + shown(rope) + " is not supported (only \"default\" is)");
  }
  const double theta = number_in(thetas, config, "rope_theta", 10000);
  return has(config, "rope_parameters") ? number_in(thetas, config["rope_parameters"], "rope_theta", theta) : theta;
}

std::string architecture_of(const json& config) {
  const json names = config.value("architectures", json::array());
  if (names.is_array() && names.size() == 1) {
    for (const char* known : {"LlamaForCausalLM", "Qwen2ForCausalLM"}) {
      if (names[0] == known) return known;
    }
  }
  refuse("architectures " + shown(names) + " are not supported (LlamaForCausalLM and Qwen2ForCausalLM are)");
}

std::string read_config(const std::filesystem::path& path) {
  std::error_code code;
  std::ifstream stream(path, std::ios::binary);
  if (!std::filesystem::is_regular_file(path, code) || !stream) throw error(path.string() + ": cannot be opened");
  if (std::filesystem::file_size(path, code) > longest_config) {
    throw error(path.string() + ": has more than the " + std::to_string(longest_config) + " bytes that are read");
  }
  std::ostringstream text;
  text << stream.rdbuf();
  if (!stream.good()) throw error(path.string() + ": cannot be read");
  return text.str();
}

/// Tensors of one checkpoint, fetched by name with the shape that the config implies.
class checkpoint {
 public:
  explicit checkpoint(const std::filesystem::path& directory)
      : file_(skim::safetensors::checkpoint::read(directory)), path_(file_.path().string()) {
    if (!file_.ok()) throw error(file_.error());
  }

  /// Writes the tensor `name`, [rows, columns], widened to f32, to `rows` rows of `target` from row `first`.
  void read(const std::string& name, std::int64_t rows, std::int64_t columns, float* target) const {
    const auto view = find(name, {rows, columns}).view<2>();
    if (!view) throw unusable(name);
    widen(view->data, view->type, rows * columns, target);
  }

  matrix read_matrix(const std::string& name, std::int64_t rows, std::int64_t columns) const {
    find(name, {rows, columns});  // before memory is taken for a shape that the file does not have
    matrix target(rows, columns);
    read(name, rows, columns, target.data());
    return target;
  }

  row read_row(const std::string& name, std::int64_t columns) const {
    const auto view = find(name, {columns}).view<1>();
    if (!view) throw unusable(name);
    row target(columns);
    widen(view->data, view->type, columns, target.data());
    return target;
  }

  const skim::safetensors::tensor& find(const std::string& name, const std::vector<std::int64_t>& shape) const {
    const skim::safetensors::tensor* found = file_.find(name);
    if (!found) throw error(path_ + ": there is no tensor " + name);
    found_.insert(name);
    if (found->shape != shape) {
      throw error(path_ + ": tensor " + name + " is " + shown(json(found->shape)) + ", config.json implies " +
                  shown(json(shape)));
    }
    return *found;
  }

  /// A part of the model that was not asked for, such as one more layer or a bias, would be missing in what is computed.
  void refuse_unused(const model_config& c) const {
    const std::string part = "model.", table = "rotary_emb.inv_freq";  // old files bring the rotation's table
    for (const auto& [name, tensor] : file_.tensors()) {
      const bool ends = name.size() >= table.size() && name.substr(name.size() - table.size()) == table;
      if (name.compare(0, part.size(), part) != 0 || ends || found_.count(tensor->name) != 0) continue;
      throw error(path_ + ": tensor " + shown(json(name)) + " has no place in what config.json describes (" +
                  c.architecture + ", num_hidden_layers " + std::to_string(c.layers) + ")");
    }
  }

 private:
  error unusable(const std::string& name) const {
    return error(path_ + ": tensor " + name + " has elements of type " + shown(json(file_.find(name)->dtype.name)) +
                 ", expected F32, F16 or BF16, aligned");
  }

  static void widen(const void* from, skim::element type, std::int64_t count, float* to) {
    for (std::int64_t i = 0; i < count; ++i) to[i] = skim::load_element(from, type, i);
  }

  skim::safetensors::checkpoint file_;
  std::string path_;
  mutable std::set<std::string> found_;
};

layer_weights read_layer(const checkpoint& file, const model_config& c, std::int64_t index) {
  const std::string name = "model.layers." + std::to_string(index) + ".";
  layer_weights layer;
  layer.attention_norm = file.read_row(name + "input_layernorm.weight", c.d);
  const std::pair<const char*, std::int64_t> parts[] = {
      {"q_proj", c.query_heads * c.D}, {"k_proj", c.kv_heads * c.D}, {"v_proj", c.kv_heads * c.D}};
  const std::int64_t rows = (c.query_heads + 2 * c.kv_heads) * c.D;
  for (const auto& [part, features] : parts) {
    file.find(name + "self_attn." + part + ".weight", {features, c.d});
    if (c.qkv_bias) file.find(name + "self_attn." + part + ".bias", {features});
  }
  layer.qkv.resize(rows, c.d);
  if (c.qkv_bias) layer.qkv_bias.resize(rows);
  std::int64_t first = 0;
  for (const auto& [part, features] : parts) {
    file.read(name + "self_attn." + part + ".weight", features, c.d, layer.qkv.row(first).data());
    if (c.qkv_bias) {
      layer.qkv_bias.segment(first, features) = file.read_row(name + "self_attn." + part + ".bias", features);
    }
    first += features;
  }
  layer.out = file.read_matrix(name + "self_attn.o_proj.weight", c.d, c.query_heads * c.D);
  layer.ffn_norm = file.read_row(name + "post_attention_layernorm.weight", c.d);
  layer.gate = file.read_matrix(name + "mlp.gate_proj.weight", c.f, c.d);
  layer.up = file.read_matrix(name + "mlp.up_proj.weight", c.f, c.d);
  layer.down = file.read_matrix(name + "mlp.down_proj.weight", c.d, c.f).transpose();
  return layer;
}

}  // namespace

model_config parse_config(const std::string& text) {
  const auto shallow = [](int depth, json::parse_event_t, const json&) {
    if (depth > deepest) refuse("nests deeper than " + std::to_string(deepest) + " levels");
    return true;
  };
  const json config = json::parse(text, shallow, /*allow_exceptions=*/false);
  if (!config.is_object()) refuse("not a JSON object");
  model_config c;
  c.architecture = architecture_of(config);
  c.qkv_bias = c.architecture == "Qwen2ForCausalLM";
  require(config, "hidden_act", "silu");
  require(config, "attention_bias", c.qkv_bias);
  require(config, "mlp_bias", false);
  require(config, "use_sliding_window", false);
  require(config, "partial_rotary_factor", 1.0);
  if (has(config, "quantization_config")) refuse("quantized weights are not supported");
  c.d = size_of(config, "hidden_size");
  c.f = size_of(config, "intermediate_size");
  c.layers = size_of(config, "num_hidden_layers");
  c.vocabulary = size_of(config, "vocab_size");
  c.query_heads = size_of(config, "num_attention_heads");
  c.kv_heads = size_of(config, "num_key_value_heads", c.query_heads);
  if (c.query_heads % c.kv_heads != 0) {
    refuse("num_attention_heads " + std::to_string(c.query_heads) + " is no multiple of num_key_value_heads " +
           std::to_string(c.kv_heads));
  }
  if (!has(config, "head_dim") && c.d % c.query_heads != 0) {
    refuse("there is no head_dim, and hidden_size is no multiple of num_attention_heads");
  }
  c.D = size_of(config, "head_dim", c.d / c.query_heads);
  if (c.D % 2 != 0 || c.D > 4096) {
    refuse("head_dim is " + std::to_string(c.D) + ", expected an even number of at most 4096");
  }
  if (c.query_heads * c.D > largest_size) refuse("num_attention_heads times head_dim is too large");
  c.norm_epsilon = static_cast<float>(number_in(epsilons, config, "rms_norm_eps", 1e-6));
  c.rope_theta = rope_theta(config);
  c.tied_output = flag(config, "tie_word_embeddings", false);
  return c;
}

model read_model(const std::filesystem::path& directory) {
  model result;
  try {
    result.config = parse_config(read_config(directory / "config.json"));
  } catch (const error& problem) {
    const std::string what = problem.what();
    throw error(what.rfind("config.json", 0) == 0 ? (directory / what).string() : what);
  }
  const model_config& c = result.config;
  const checkpoint file(directory);
  result.embedding = file.read_matrix("model.embed_tokens.weight", c.vocabulary, c.d);
  for (std::int64_t index = 0; index < c.layers; ++index) result.layers.push_back(read_layer(file, c, index));
  result.norm = file.read_row("model.norm.weight", c.d);
  if (!c.tied_output) result.head = file.read_matrix("lm_head.weight", c.vocabulary, c.d);
  file.refuse_unused(c);
  const std::filesystem::path fitted = directory / fitted_file;
  if (std::error_code code; std::filesystem::exists(fitted, code)) {
    skim::loaded_fastforward loaded = skim::load_fastforward(fitted, {c.layers, c.d, c.f, skim::activation::silu});
    if (!loaded.ok()) throw error(fitted.string() + ": " + loaded.error);
    result.fitted = std::move(loaded.model);
  }
  return result;
}

}  // namespace needle
