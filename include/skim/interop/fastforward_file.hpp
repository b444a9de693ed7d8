// SPDX-License-Identifier: Apache-2.0
/// \file `fastforward.safetensors`: a model's fitted FastForward parts, as a file. Needs nlohmann-json, not Eigen.
///
/// Tensors, for each layer l, of the paper's shapes (r is free): `layers.l.query` [d], `.w1` [d, r], `.w2` [r, f], `.c1` [d, c],
/// `.c2` [c, d], `.set_c1` [d, c], `.set_c2` [c, d], in f32, f16 or bf16; `.statistic` [f], always f32, because a set
/// is read off its order; and, if the engine measured them, `importance` [layers], and `loss.keep` [levels] with `loss`
/// [layers, levels], f32. Metadata: `format` "skim.fastforward", `version` "1", `activation` and either `keep.fraction` or
/// `keep.count`.
#pragma once

#include <skim/interop/fitted_fastforward.hpp>
#include <skim/interop/safetensors_writer.hpp>

#include <cmath>

namespace skim { inline namespace v0_2 {

/// What a file has to fit.
struct model_shape {
  std::int64_t layers = 0, d = 0, f = 0;
  activation act = activation::silu;
};

/// The parts, or what is wrong with the file in one line of printable ASCII, without its name.
struct loaded_fastforward {
  calibrate::fitted_model model;
  std::string error;

  bool ok() const { return error.empty(); }
};

namespace detail {

inline constexpr const char* fastforward_format = "skim.fastforward";
inline constexpr const char* fastforward_version = "1";

/// A tensor's name within its layer, its place and its shape.
struct fastforward_tensor {
  const char* name;
  std::vector<float> calibrate::fitted_layer::*values;
  std::vector<std::int64_t> shape;
};

inline std::vector<fastforward_tensor> fastforward_tensors(std::int64_t d, std::int64_t r, std::int64_t f) {
  using layer = calibrate::fitted_layer;
  const std::int64_t c = compensator_width(d);
  return {{"query", &layer::query, {d}},      {"w1", &layer::w1, {d, r}},        {"w2", &layer::w2, {r, f}},
          {"c1", &layer::c1, {d, c}},         {"c2", &layer::c2, {c, d}},        {"statistic", &layer::statistic, {f}},
          {"set_c1", &layer::set_c1, {d, c}}, {"set_c2", &layer::set_c2, {c, d}}};
}

inline std::string layer_tensor(std::size_t layer, const char* name) {
  return "layers." + std::to_string(layer) + "." + name;
}

inline std::string text_of(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const std::int64_t extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

/// Reads one tensor; returns what is wrong.
inline std::string take_tensor(const safetensors::file& file, const std::string& name,
                               const std::vector<std::int64_t>& shape, std::vector<float>& values) {
  const safetensors::tensor* const found = file.find(name);
  if (!found) return "there is no tensor '" + name + "'";
  if (found->shape != shape) {
    return "tensor '" + name + "' is " + text_of(found->shape) + ", the model needs " + text_of(shape);
  }
  if (found->dtype.type == element::none) {
    return "tensor '" + name + "' has elements of type " + printable_name(found->dtype.name) +
           ", expected F32, F16 or BF16";
  }
  const std::size_t width = static_cast<std::size_t>(found->dtype.bytes);
  values.resize(found->bytes / width);
  for (std::size_t i = 0; i < values.size(); ++i) {
    alignas(4) char aligned[4] = {};  // the file's data need not be
    std::memcpy(aligned, static_cast<const char*>(found->data) + i * width, width);
    values[i] = load_element(aligned, found->dtype.type, 0);
    if (!std::isfinite(values[i])) return "tensor '" + name + "' has an element that is not finite";
  }
  return "";
}

/// The number that a text spells, in any locale, or NaN.
inline double number_in(const std::string* text) {
  constexpr std::size_t longest = 32;  // a hostile text may spell a million lists in each other
  const nlohmann::json value = nlohmann::json::parse(text && text->size() <= longest ? *text : "", nullptr, false);
  return value.is_number() ? value.get<double>() : std::nan("");
}

inline std::string take_metadata(const safetensors::file& file, const model_shape& shape, neuron_retention& keep) {
  const auto is = [&file](const char* name, const std::string& value) {
    const std::string* const text = file.metadata(name);
    return text && *text == value;
  };
  const auto shown = [&file](const char* name) {
    const std::string* const text = file.metadata(name);
    return text ? printable_name(*text) : std::string("missing");
  };
  if (!is("format", fastforward_format)) return "not a file of fitted FastForward parts";
  if (!is("version", fastforward_version)) {
    return "its version is " + shown("version") + ", this library reads '" + fastforward_version + "'";
  }
  if (!is("activation", to_string(shape.act))) {
    return "its activation is " + shown("activation") + ", the model's is '" + to_string(shape.act) + "'";
  }
  const bool counted = file.metadata("keep.count") != nullptr;
  const double value = number_in(file.metadata(counted ? "keep.count" : "keep.fraction"));
  const bool valid = value > 0 && value <= (counted ? 0x1p53 : 1) && (!counted || value == std::floor(value));
  if (!valid) return "its metadata have no valid keep.fraction or keep.count";
  keep = counted ? neuron_retention::budget(static_cast<std::int64_t>(value)) : neuron_retention::share(value);
  return "";
}

}  // namespace detail

/// The file's bytes; the same ones for the same parts. `type`: of the weights.
inline safetensors::writer fastforward_writer(const calibrate::fitted_model& model, element type) {
  safetensors::writer file;
  file.metadata["format"] = detail::fastforward_format;
  file.metadata["version"] = detail::fastforward_version;
  file.metadata["activation"] = to_string(model.act);
  if (model.keep.count > 0) {
    file.metadata["keep.count"] = std::to_string(model.keep.count);
  } else {
    file.metadata["keep.fraction"] = nlohmann::json(model.keep.fraction).dump();  // reads back as the same double
  }
  for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
    const std::int64_t r = model.fastforward(layer).predictor.w1.extents[1];
    for (const detail::fastforward_tensor& each : detail::fastforward_tensors(model.d, r, model.f)) {
      const bool ordered = each.values == &calibrate::fitted_layer::statistic;
      file.add(detail::layer_tensor(layer, each.name), each.shape, model.layers[layer].*each.values,
               ordered ? element::f32 : type);
    }
  }
  if (!model.importance.empty()) {
    file.add("importance", {static_cast<std::int64_t>(model.importance.size())}, model.importance, element::f32);
  }
  if (!model.loss_keep.empty()) {
    const std::int64_t levels = static_cast<std::int64_t>(model.loss_keep.size());
    file.add("loss.keep", {levels}, model.loss_keep, element::f32);
    file.add("loss", {static_cast<std::int64_t>(model.layers.size()), levels}, model.loss, element::f32);
  }
  return file;
}

/// Writes the file; returns what went wrong in one line, or nothing.
inline std::string save_fastforward(const std::filesystem::path& path, const calibrate::fitted_model& model,
                                    element type = element::bf16) {
  return fastforward_writer(model, type).write(path);
}

/// Whether a file says that it holds fitted parts, of whatever model and version.
inline bool is_fastforward_file(const std::filesystem::path& path) {
  const safetensors::file file = safetensors::file::read(path);
  const std::string* const format = file.metadata("format");
  return format && *format == detail::fastforward_format;
}

/// Takes the parts out of a file that was read, and checks them against the model. Throws nothing but std::bad_alloc.
inline loaded_fastforward load_fastforward(const safetensors::file& file, const model_shape& shape) {
  loaded_fastforward loaded;
  const auto fail = [&loaded](std::string error) {
    loaded.model = {};
    loaded.error = std::move(error);
    return loaded;
  };
  if (!file.ok()) return fail(file.error());
  if (std::string error = detail::take_metadata(file, shape, loaded.model.keep); !error.empty()) return fail(error);
  loaded.model.d = shape.d;
  loaded.model.f = shape.f;
  loaded.model.act = shape.act;
  std::size_t expected = 0;
  for (std::size_t layer = 0; layer < static_cast<std::size_t>(shape.layers); ++layer) {
    loaded.model.layers.emplace_back();
    const safetensors::tensor* const w1 = file.find(detail::layer_tensor(layer, "w1"));
    const std::int64_t r = w1 && w1->shape.size() == 2 ? w1->shape[1] : predictor_rank(shape.d);
    for (const detail::fastforward_tensor& each : detail::fastforward_tensors(shape.d, r, shape.f)) {
      std::string error = detail::take_tensor(file, detail::layer_tensor(layer, each.name), each.shape,
                                              loaded.model.layers.back().*each.values);
      if (!error.empty()) return fail(std::move(error));
      ++expected;
    }
    if (r < 1) return fail("tensor '" + detail::layer_tensor(layer, "w1") + "' has no columns");
  }
  if (file.find("importance")) {
    ++expected;
    std::string error = detail::take_tensor(file, "importance", {shape.layers}, loaded.model.importance);
    if (!error.empty()) return fail(std::move(error));
  }
  if (const safetensors::tensor* const keep = file.find("loss.keep")) {
    expected += 2;
    const std::int64_t levels = keep->shape.size() == 1 ? keep->shape[0] : 0;
    std::string error = detail::take_tensor(file, "loss.keep", {levels}, loaded.model.loss_keep);
    if (error.empty()) error = detail::take_tensor(file, "loss", {shape.layers, levels}, loaded.model.loss);
    if (!error.empty()) return fail(std::move(error));
    if (!check(loaded.model.losses(), shape.f))
      return fail("tensor 'loss.keep' has no ascending shares between 0 and 1");
  }
  if (file.tensors().size() != expected) {
    return fail("it has " + std::to_string(file.tensors().size()) + " tensors, the model needs " +
                std::to_string(expected));
  }
  return loaded;
}

/// The same for a path.
inline loaded_fastforward load_fastforward(const std::filesystem::path& path, const model_shape& shape) {
  return load_fastforward(safetensors::file::read(path), shape);
}

}}  // namespace skim::v0_2
