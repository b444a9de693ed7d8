// SPDX-License-Identifier: Apache-2.0
#include "model.hpp"

#include "error.hpp"
#include "json_text.hpp"

#include <skim/interop/fastforward_file.hpp>
#include <skim/interop/safetensors_shards.hpp>
#include <skim/weights.hpp>

#include <algorithm>
#include <cmath>
#include <set>

namespace needle {
namespace {

using nlohmann::json;

constexpr std::uintmax_t longest_config = 1 << 20;

[[noreturn]] void refuse(const std::string& problem) {
  throw error("config.json: " + problem);
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
constexpr range factors{1e-3, 1e6}, lengths{1, 1e9};
constexpr double two_pi = 6.283185307179586;

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

/// What the angles are multiplied by: of `linear`, or of Llama 3's rule, which leaves short waves as they are, divides long
/// ones and blends between.
std::vector<float> rope_scale_of(const json& rope, const std::string& where, double theta, std::int64_t D) {
  const json kind = !rope.is_object() ? rope : rope.value("rope_type", rope.value("type", json("default")));
  if (kind == "default") return {};
  if (kind != "linear" && kind != "llama3") {
    refuse(where + " " + shown(rope) + " is not supported (\"default\", \"linear\" and \"llama3\" are)");
  }
  if (!has(rope, "factor")) refuse(where + " has no factor");
  const double factor = number_in(factors, rope, "factor", 1);
  std::vector<float> scale(static_cast<std::size_t>(D / 2), static_cast<float>(1 / factor));
  if (kind == "linear") return scale;
  const double low = number_in(factors, rope, "low_freq_factor", 1);
  const double high = number_in(factors, rope, "high_freq_factor", 4);
  const double trained = number_in(lengths, rope, "original_max_position_embeddings", 8192);
  if (!(high > low)) refuse(where + " has a high_freq_factor that is not above its low_freq_factor");
  for (std::size_t i = 0; i < scale.size(); ++i) {
    const double turns = trained * std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(D)) / two_pi;
    const double kept = std::clamp((turns - low) / (high - low), 0.0, 1.0);
    scale[i] = static_cast<float>((1 - kept) / factor + kept);
  }
  return scale;
}

/// Newer files keep base and scaling in `rope_parameters`, Gemma 3's for each kind of layer.
void read_rope(const json& config, model_config& c) {
  c.rope_theta = number_in(thetas, config, "rope_theta", c.windowed.empty() ? 10000 : 1e6);
  c.window_theta = number_in(thetas, config, "rope_local_base_freq", 10000);
  for (const char* const name : {"rope_scaling", "rope_parameters"}) {
    if (!has(config, name)) continue;
    const json& given = config[name];
    const bool by_kind = given.is_object() && given.contains("full_attention");
    const json& rope = by_kind ? given["full_attention"] : given;
    if (rope.is_object()) c.rope_theta = number_in(thetas, rope, "rope_theta", c.rope_theta);
    const std::vector<float> scale = rope_scale_of(rope, name, c.rope_theta, c.D);
    if (!scale.empty()) c.rope_scale = scale;
    if (!by_kind || !has(given, "sliding_attention")) continue;
    const json& local = given["sliding_attention"];
    if (!rope_scale_of(local, name, c.rope_theta, c.D).empty()) {
      refuse(std::string(name) + " " + shown(local) + " is not supported (layers with a window are not scaled)");
    }
    c.window_theta = number_in(thetas, local, "rope_theta", c.window_theta);
  }
}

struct family {
  const char* name;
  bool qkv_bias, qk_norm, gemma;
};
constexpr family families[] = {{"LlamaForCausalLM", false, false, false},
                               {"Qwen2ForCausalLM", true, false, false},
                               {"Qwen3ForCausalLM", false, true, false},
                               {"Gemma3ForCausalLM", false, true, true}};

const family& family_of(const json& config) {
  const json names = config.value("architectures", json::array());
  std::string all;
  for (const family& each : families) {
    if (names.is_array() && names.size() == 1 && names[0] == each.name) return each;
    all += (all.empty() ? "" : ", ") + std::string(each.name);
  }
  refuse("architectures " + shown(names) + " are not supported (" + all + " are)");
}

/// What Gemma 3 has beside Llama: windows, a scaled embedding, norms behind attention and the FFN.
void read_gemma(const json& config, model_config& c) {
  c.post_norms = true;
  c.activation = skim::activation::gelu_tanh;
  c.embedding_scale = std::sqrt(static_cast<float>(c.d));
  const double scaled_for = number_in(lengths, config, "query_pre_attn_scalar", static_cast<double>(c.D));
  c.attention_scale = static_cast<float>(1 / std::sqrt(scaled_for));
  require(config, "attn_logit_softcapping", nullptr);
  require(config, "final_logit_softcapping", nullptr);
  require(config, "use_bidirectional_attention", false);
  c.window = size_of(config, "sliding_window", 4096);
  const std::int64_t pattern = size_of(config, "sliding_window_pattern", 6);
  const json kinds = config.value("layer_types", json());
  if (!kinds.is_null() && (!kinds.is_array() || static_cast<std::int64_t>(kinds.size()) != c.layers)) {
    refuse("layer_types " + shown(kinds) + " is no list of as many kinds as there are layers");
  }
  for (std::int64_t layer = 0; layer < c.layers; ++layer) {
    const bool full = (layer + 1) % pattern == 0;
    const json kind =
        kinds.is_null() ? json(full ? "full_attention" : "sliding_attention") : kinds[static_cast<std::size_t>(layer)];
    if (kind != "full_attention" && kind != "sliding_attention") {
      refuse("layer_types has " + shown(kind) + ", expected \"full_attention\" or \"sliding_attention\"");
    }
    c.windowed.push_back(kind == "sliding_attention");
  }
}

/// Tensors of one checkpoint, fetched by name with the shape that the config implies.
class checkpoint {
 public:
  explicit checkpoint(const std::filesystem::path& directory)
      : file_(skim::safetensors::checkpoint::read(directory)), path_(file_.path().string()) {
    if (!file_.ok()) throw error(file_.error());
  }

  stored_matrix read_matrix(const std::string& name, std::int64_t rows, std::int64_t columns) const {
    const auto view = find(name, {rows, columns}).view<2>();
    if (!view) throw unusable(name);
    return {*view, nullptr};
  }

  row read_row(const std::string& name, std::int64_t columns) const {
    const auto view = find(name, {columns}).view<1>();
    if (!view) throw unusable(name);
    row target(columns);
    for (std::int64_t i = 0; i < columns; ++i) target(i) = skim::load_element(view->data, view->type, i);
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

  skim::safetensors::checkpoint file_;
  std::string path_;
  mutable std::set<std::string> found_;
};

/// Gemma's checkpoints hold what the factors exceed 1 by.
row read_norm(const checkpoint& file, const model_config& c, const std::string& name, std::int64_t columns) {
  row norm = file.read_row(name, columns);
  if (c.architecture == "Gemma3ForCausalLM") norm.array() += 1;
  return norm;
}

layer_weights read_layer(const checkpoint& file, const model_config& c, std::int64_t index) {
  const std::string name = "model.layers." + std::to_string(index) + ".";
  layer_weights layer;
  layer.attention_norm = read_norm(file, c, name + "input_layernorm.weight", c.d);
  const auto read_part = [&](const char* part, std::int64_t features, stored_matrix& weight, row& bias) {
    weight = file.read_matrix(name + "self_attn." + part + ".weight", features, c.d);
    if (c.qkv_bias) bias = file.read_row(name + "self_attn." + part + ".bias", features);
  };
  read_part("q_proj", c.query_heads * c.D, layer.q, layer.q_bias);
  read_part("k_proj", c.kv_heads * c.D, layer.k, layer.k_bias);
  read_part("v_proj", c.kv_heads * c.D, layer.v, layer.v_bias);
  layer.out = file.read_matrix(name + "self_attn.o_proj.weight", c.d, c.query_heads * c.D);
  if (c.qk_norm) {
    layer.query_norm = read_norm(file, c, name + "self_attn.q_norm.weight", c.D);
    layer.key_norm = read_norm(file, c, name + "self_attn.k_norm.weight", c.D);
  }
  const char* const before_ffn = c.post_norms ? "pre_feedforward_layernorm.weight" : "post_attention_layernorm.weight";
  layer.ffn_norm = read_norm(file, c, name + before_ffn, c.d);
  if (c.post_norms) {
    layer.attention_post_norm = read_norm(file, c, name + "post_attention_layernorm.weight", c.d);
    layer.ffn_post_norm = read_norm(file, c, name + "post_feedforward_layernorm.weight", c.d);
  }
  layer.gate = file.read_matrix(name + "mlp.gate_proj.weight", c.f, c.d);
  layer.up = file.read_matrix(name + "mlp.up_proj.weight", c.f, c.d);
  layer.down = transposed(file.read_matrix(name + "mlp.down_proj.weight", c.d, c.f));
  unite_types(layer.gate, layer.up, layer.down);
  return layer;
}

}  // namespace

stored_matrix stored_matrix::reserve(std::int64_t rows, std::int64_t columns, skim::element type) {
  stored_matrix made;
  made.own = std::make_shared<skim::buffer>(static_cast<std::size_t>(skim::bytes_of(type, rows * columns)));
  made.view = {made.own->data(), {rows, columns}, type};
  return made;
}

void stored_matrix::widen(std::int64_t index, float* target) const {
  for (std::int64_t i = 0; i < view.extents[1]; ++i) target[i] = skim::load_element(view.at(index), view.type, i);
}

stored_matrix transposed(const stored_matrix& from) {
  stored_matrix made = stored_matrix::reserve(from.view.extents[1], from.rows(), from.view.type);
  demand(skim::transpose(from.view, made.to_fill()));
  return made;
}

void unite_types(stored_matrix& a, stored_matrix& b, stored_matrix& c) {
  if (a.view.type == b.view.type && b.view.type == c.view.type) return;
  for (stored_matrix* const each : {&a, &b, &c}) {
    stored_matrix wide = stored_matrix::reserve(each->rows(), each->view.extents[1], skim::element::f32);
    for (std::int64_t r = 0; r < each->rows(); ++r) each->widen(r, static_cast<float*>(wide.to_fill().at(r)));
    *each = wide;
  }
}

model_config parse_config(const std::string& text) {
  const json config = parse_object(text, "config.json");
  const family& kind = family_of(config);
  model_config c;
  c.architecture = kind.name;
  c.qkv_bias = kind.qkv_bias;
  c.qk_norm = kind.qk_norm;
  require(config, kind.gemma ? "hidden_activation" : "hidden_act", kind.gemma ? "gelu_pytorch_tanh" : "silu");
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
  c.trained_positions = static_cast<std::int64_t>(number_in(lengths, config, "max_position_embeddings", 0));
  if (kind.gemma) read_gemma(config, c);
  read_rope(config, c);
  c.tied_output = flag(config, "tie_word_embeddings", kind.gemma);
  return c;
}

model read_model(const std::filesystem::path& directory) {
  model result;
  try {
    result.config = parse_config(read_text(directory / "config.json", longest_config));
  } catch (const error& problem) {
    const std::string what = problem.what();
    throw error(what.rfind("config.json", 0) == 0 ? (directory / what).string() : what);
  }
  const model_config& c = result.config;
  const auto kept = std::make_shared<const checkpoint>(directory);
  const checkpoint& file = *kept;
  result.file = kept;
  result.embedding = file.read_matrix("model.embed_tokens.weight", c.vocabulary, c.d);
  for (std::int64_t index = 0; index < c.layers; ++index) result.layers.push_back(read_layer(file, c, index));
  result.norm = read_norm(file, c, "model.norm.weight", c.d);
  if (!c.tied_output) result.head = file.read_matrix("lm_head.weight", c.vocabulary, c.d);
  file.refuse_unused(c);
  read_fitted(directory / fitted_file, result);
  return result;
}

void read_fitted(const std::filesystem::path& path, model& into) {
  if (std::error_code code; !std::filesystem::exists(path, code)) return;
  const model_config& c = into.config;
  skim::loaded_fastforward loaded = skim::load_fastforward(path, {c.layers, c.d, c.f, c.activation});
  if (!loaded.ok()) throw error(path.string() + ": " + loaded.error);
  into.fitted = std::move(loaded.model);
}

}  // namespace needle
