// SPDX-License-Identifier: Apache-2.0
#include "gguf_model.hpp"

#include "error.hpp"

#include <skim/interop/gguf_blocks.hpp>

#include <cmath>
#include <cstring>
#include <set>

namespace needle {
namespace {

std::string shown(std::string_view text) {
  return skim::printable_name(text);
}

/// What the file says under its architecture's name.
class settings {
 public:
  explicit settings(const skim::gguf::file& file) : file_(file) {
    name_ = file.text("general.architecture").value_or("");
    if (name_ != "llama" && name_ != "qwen2" && name_ != "qwen3" && name_ != "gemma3")
      throw error("architecture " + shown(name_) + " is not supported (llama, qwen2, qwen3 and gemma3 are)");
  }

  const std::string& architecture() const { return name_; }
  std::string key(const char* name) const { return name_ + "." + name; }
  bool has(const char* name) const { return file_.find_value(key(name)) != nullptr; }

  std::int64_t size(const char* name, std::int64_t otherwise = 0) const {
    if (!has(name) && otherwise > 0) return otherwise;
    const std::int64_t value = file_.integer(key(name)).value_or(0);
    if (value < 1 || value > largest_size)
      throw error(key(name) + " is not a whole number from 1 to " + std::to_string(largest_size));
    return value;
  }
  double number(const char* name, double least, double most, double otherwise) const {
    const double value = has(name) ? file_.number(key(name)).value_or(0) : otherwise;
    if (!(value >= least && value <= most)) throw error(key(name) + " is out of range");
    return value;
  }
  /// Refuses what the engine does not compute; "none", 0 and 1 say that there is nothing to compute.
  void require_absent(const char* name) const {
    const double number = file_.number(key(name)).value_or(2);
    if (has(name) && file_.text(key(name)).value_or("") != "none" && number != 0 && number != 1)
      throw error(key(name) + " is not supported");
  }

 private:
  const skim::gguf::file& file_;
  std::string name_;
};

/// The file's tensors, fetched by name with the shape that the settings imply.
class weights {
 public:
  explicit weights(const skim::gguf::file& file) : file_(file) {}

  const skim::gguf::tensor& find(const std::string& name, const std::vector<std::int64_t>& shape) {
    const skim::gguf::tensor* const found = file_.find(name);
    if (!found) throw error("there is no tensor " + name);
    used_.insert(name);
    if (found->shape != shape) throw error("tensor " + name + " has another shape than the settings imply");
    if (!skim::gguf::can_widen(*found))
      throw error("tensor " + name + " has numbers of a type that is not read, " +
                  (found->format ? found->format->name : std::to_string(found->type)));
    return *found;
  }
  bool has(const std::string& name) const { return file_.find(name) != nullptr; }

  /// As it is stored where a number has bytes of its own, else in bf16.
  stored_matrix read_matrix(const std::string& name, std::int64_t rows, std::int64_t columns) {
    const skim::gguf::tensor& from = find(name, {rows, columns});
    if (const auto view = from.view<2>()) return {*view, nullptr};
    stored_matrix target = stored_matrix::reserve(rows, columns, skim::element::bf16);
    row wide(columns);
    for (std::int64_t i = 0; i < rows; ++i) {
      skim::gguf::widen_rows(from, i, 1, wide.data());
      skim::bf16* const narrow = static_cast<skim::bf16*>(target.to_fill().at(i));
      for (std::int64_t column = 0; column < columns; ++column)
        narrow[column] = skim::from_float<skim::bf16>(wide(column));
    }
    return target;
  }
  row read_row(const std::string& name, std::int64_t columns) {
    row target(columns);
    skim::gguf::widen_rows(find(name, {columns}), 0, 1, target.data());
    return target;
  }

  /// A part of the model that was not asked for would be missing in what is computed.
  void refuse_unused() const {
    for (const skim::gguf::tensor& each : file_.tensors()) {
      if (used_.count(std::string(each.name)) == 0)
        throw error("tensor " + shown(each.name) + " has no place in what the settings describe");
    }
  }

 private:
  const skim::gguf::file& file_;
  std::set<std::string> used_;
};

/// llama's queries and keys come with the two numbers that turn together side by side; the engine has them half a head apart.
stored_matrix part_halves(const stored_matrix& from, std::int64_t D) {
  const std::int64_t columns = from.view.extents[1];
  stored_matrix to = stored_matrix::reserve(from.rows(), columns, from.view.type);
  for (std::int64_t r = 0; r < from.rows(); ++r) {
    const std::int64_t head = r / D, i = r % D;
    std::memcpy(to.to_fill().at(head * D + i % 2 * (D / 2) + i / 2), from.view.at(r),
                static_cast<std::size_t>(skim::bytes_of(from.view.type, columns)));
  }
  return to;
}

layer_weights read_layer(weights& from, const model_config& c, std::int64_t index) {
  const std::string name = "blk." + std::to_string(index) + ".";
  layer_weights layer;
  layer.attention_norm = from.read_row(name + "attn_norm.weight", c.d);
  const bool side_by_side = c.architecture == "llama";
  const auto read_part = [&](const char* part, std::int64_t heads, bool turns, stored_matrix& weight, row& bias) {
    weight = from.read_matrix(name + part + ".weight", heads * c.D, c.d);
    if (turns && side_by_side) weight = part_halves(weight, c.D);
    if (c.qkv_bias) bias = from.read_row(name + part + ".bias", heads * c.D);
  };
  read_part("attn_q", c.query_heads, true, layer.q, layer.q_bias);
  read_part("attn_k", c.kv_heads, true, layer.k, layer.k_bias);
  read_part("attn_v", c.kv_heads, false, layer.v, layer.v_bias);
  layer.out = from.read_matrix(name + "attn_output.weight", c.d, c.query_heads * c.D);
  if (c.qk_norm) {
    layer.query_norm = from.read_row(name + "attn_q_norm.weight", c.D);
    layer.key_norm = from.read_row(name + "attn_k_norm.weight", c.D);
  }
  layer.ffn_norm = from.read_row(name + "ffn_norm.weight", c.d);
  if (c.post_norms) {
    layer.attention_post_norm = from.read_row(name + "post_attention_norm.weight", c.d);
    layer.ffn_post_norm = from.read_row(name + "post_ffw_norm.weight", c.d);
  }
  layer.gate = from.read_matrix(name + "ffn_gate.weight", c.f, c.d);
  layer.up = from.read_matrix(name + "ffn_up.weight", c.f, c.d);
  layer.down = transposed(from.read_matrix(name + "ffn_down.weight", c.d, c.f));
  unite_types(layer.gate, layer.up, layer.down);
  return layer;
}

/// What Gemma 3 has beside Llama. Norms are stored as they multiply.
void read_gemma(const settings& given, model_config& c) {
  c.post_norms = true;
  c.activation = skim::activation::gelu_tanh;
  c.embedding_scale = std::sqrt(static_cast<float>(c.d));
  constexpr std::int64_t layers_of_27b = 62;  // whose queries are scaled by the width of a head of the model's
  const double scaled_for = static_cast<double>(c.layers == layers_of_27b ? c.d / c.query_heads : c.D);
  c.attention_scale = static_cast<float>(1 / std::sqrt(scaled_for));
  c.window = given.size("attention.sliding_window", 4096);
  const std::int64_t pattern = given.size("attention.sliding_window_pattern", 6);
  for (std::int64_t layer = 0; layer < c.layers; ++layer) c.windowed.push_back((layer + 1) % pattern != 0);
}

}  // namespace

model read_model(const std::shared_ptr<const skim::gguf::file>& opened) {
  const skim::gguf::file& file = *opened;
  if (!file.ok()) throw error(file.error());
  const settings given(file);
  model result;
  result.file = opened;
  model_config& c = result.config;
  c.architecture = given.architecture();
  c.d = given.size("embedding_length");
  c.f = given.size("feed_forward_length");
  c.layers = given.size("block_count");
  c.query_heads = given.size("attention.head_count");
  c.kv_heads = given.size("attention.head_count_kv", c.query_heads);
  if (c.query_heads % c.kv_heads != 0) throw error("attention.head_count is no multiple of attention.head_count_kv");
  c.D = given.size("attention.key_length", std::max<std::int64_t>(c.d / c.query_heads, 1));
  if (c.D % 2 != 0 || c.D > 4096 || given.size("attention.value_length", c.D) != c.D ||
      given.size("rope.dimension_count", c.D) != c.D)
    throw error("heads are not of one even size of at most 4096, all of which is turned");
  if (c.query_heads * c.D > largest_size) throw error("there are too many heads");
  c.trained_positions = given.has("context_length") ? given.size("context_length") : 0;
  c.norm_epsilon = static_cast<float>(given.number("attention.layer_norm_rms_epsilon", 1e-20, 1, 1e-5));
  const bool gemma = c.architecture == "gemma3";
  c.rope_theta = given.number("rope.freq_base", 1, 1e12, gemma ? 1e6 : 10000);
  c.window_theta = given.number("rope.freq_base_swa", 1, 1e12, 10000);
  given.require_absent("rope.scale_linear");
  if (file.text(given.key("rope.scaling.type")).value_or("none") == "linear") {
    const double factor = given.number("rope.scaling.factor", 1e-3, 1e6, 1);
    c.rope_scale.assign(static_cast<std::size_t>(c.D / 2), static_cast<float>(1 / factor));
  } else {
    given.require_absent("rope.scaling.type");
    given.require_absent("rope.scaling.factor");
  }
  given.require_absent("expert_count");
  for (const char* const cap : {"attn_logit_softcapping", "final_logit_softcapping"}) given.require_absent(cap);
  c.qkv_bias = c.architecture == "qwen2";
  c.qk_norm = gemma || c.architecture == "qwen3";
  if (gemma) {
    read_gemma(given, c);
  } else {
    given.require_absent("attention.sliding_window");
  }

  weights from(file);
  if (from.has("rope_freqs.weight")) {  // Llama 3's scaling, as divisors
    const row divisors = from.read_row("rope_freqs.weight", c.D / 2);
    if (!(divisors.array() > 0).all()) throw error("tensor rope_freqs.weight has numbers that are not positive");
    c.rope_scale.clear();
    for (const float divisor : divisors) c.rope_scale.push_back(1 / divisor);
  }
  const skim::gguf::tensor* const embedding = file.find("token_embd.weight");
  c.vocabulary = embedding && embedding->shape.size() == 2 ? embedding->shape[0] : 0;
  if (c.vocabulary < 1 || c.vocabulary > largest_size) throw error("there is no tensor token_embd.weight with rows");
  result.embedding = from.read_matrix("token_embd.weight", c.vocabulary, c.d);
  for (std::int64_t index = 0; index < c.layers; ++index) result.layers.push_back(read_layer(from, c, index));
  result.norm = from.read_row("output_norm.weight", c.d);
  c.tied_output = !from.has("output.weight");
  if (!c.tied_output) result.head = from.read_matrix("output.weight", c.vocabulary, c.d);
  from.refuse_unused();
  return result;
}

}  // namespace needle
