// SPDX-License-Identifier: Apache-2.0
#include "support/values.hpp"

#include <skim/interop/fastforward_file.hpp>

#include <gtest/gtest.h>

#include <functional>

namespace {

using skim::element;
using skim::loaded_fastforward;
using skim::model_shape;
using skim::calibrate::fitted_layer;
using skim::calibrate::fitted_model;

constexpr model_shape shape{2, 24, 10, skim::activation::gelu_tanh};

fitted_model example() {
  fitted_model model;
  model.d = shape.d;
  model.f = shape.f;
  model.act = shape.act;
  model.keep = skim::neuron_retention::share(0.3);
  unsigned seed = 1;
  for (std::int64_t layer = 0; layer < shape.layers; ++layer) {
    model.layers.emplace_back();
    const std::int64_t r = layer == 0 ? skim::predictor_rank(shape.d) : 5;
    for (const skim::detail::fastforward_tensor& each : skim::detail::fastforward_tensors(shape.d, r, shape.f)) {
      std::int64_t count = 1;
      for (const std::int64_t extent : each.shape) count *= extent;
      model.layers.back().*each.values = skim_test::normal_values(count, seed++);
    }
  }
  model.importance = {0.25f, 0.75f};
  return model;
}

bool same(const fitted_model& a, const fitted_model& b) {
  if (a.d != b.d || a.f != b.f || a.act != b.act || a.layers.size() != b.layers.size()) return false;
  if (a.keep.count != b.keep.count || a.keep.fraction != b.keep.fraction || a.importance != b.importance) return false;
  for (std::size_t i = 0; i < a.layers.size(); ++i) {
    for (const auto& each : skim::detail::fastforward_tensors(1, 1, 1)) {
      if (a.layers[i].*each.values != b.layers[i].*each.values) return false;
    }
  }
  return true;
}

loaded_fastforward load(const std::string& bytes, const model_shape& wanted = shape) {
  return skim::load_fastforward(skim::safetensors::file::view(bytes.data(), bytes.size()), wanted);
}

TEST(fastforward_file, f32_keeps_every_bit) {
  const fitted_model model = example();
  const std::string path = testing::TempDir() + "skim_fastforward_test.safetensors";
  ASSERT_EQ(skim::save_fastforward(path, model, element::f32), "");
  const loaded_fastforward loaded = skim::load_fastforward(path, shape);
  std::filesystem::remove(path);
  ASSERT_EQ(loaded.error, "");
  EXPECT_TRUE(same(loaded.model, model));
}

TEST(fastforward_file, bf16_rounds_the_weights_once) {
  const fitted_model model = example();
  const std::string bytes = skim::fastforward_writer(model, element::bf16).bytes();
  EXPECT_LT(bytes.size(), skim::fastforward_writer(model, element::f32).bytes().size() * 2 / 3);
  const loaded_fastforward loaded = load(bytes);
  ASSERT_EQ(loaded.error, "");
  for (std::size_t i = 0; i < model.layers[1].w2.size(); ++i) {
    EXPECT_EQ(loaded.model.layers[1].w2[i], to_float(skim::from_float<skim::bf16>(model.layers[1].w2[i])));
  }
  EXPECT_EQ(loaded.model.layers[1].statistic, model.layers[1].statistic);
  EXPECT_EQ(loaded.model.importance, model.importance);
  EXPECT_EQ(skim::fastforward_writer(loaded.model, element::bf16).bytes(), bytes);
}

TEST(fastforward_file, counts_and_absent_importance) {
  fitted_model model = example();
  model.keep = skim::neuron_retention::budget(7);
  model.importance.clear();
  const loaded_fastforward loaded = load(skim::fastforward_writer(model, element::f32).bytes());
  ASSERT_EQ(loaded.error, "");
  EXPECT_TRUE(same(loaded.model, model));
}

TEST(fastforward_file, losses_are_kept_and_checked) {
  fitted_model model = example();
  model.loss_keep = {0.5f, 0.75f, 0.9f};
  model.loss = {0.3f, 0.2f, 0.1f, 0.6f, 0.4f, 0};
  const loaded_fastforward loaded = load(skim::fastforward_writer(model, element::bf16).bytes());
  ASSERT_EQ(loaded.error, "");
  EXPECT_EQ(loaded.model.loss_keep, model.loss_keep);
  EXPECT_EQ(loaded.model.loss, model.loss);
  std::int64_t counts[2] = {};
  ASSERT_TRUE(skim::neurons_for_loss(loaded.model.losses(), shape.f, 0.15, counts).ok());
  EXPECT_EQ(counts[0], 9);
  EXPECT_EQ(counts[1], 9);
  ASSERT_TRUE(skim::neurons_for_loss(loaded.model.losses(), shape.f, 0, counts).ok());
  EXPECT_EQ(counts[0], shape.f);
  model.loss_keep = {0.75f, 0.5f, 0.9f};
  EXPECT_EQ(load(skim::fastforward_writer(model, element::bf16).bytes()).error,
            "tensor 'loss.keep' has no ascending shares between 0 and 1");
  skim::safetensors::writer file = skim::fastforward_writer(example(), element::f32);
  file.add("loss.keep", {1}, {0.5f}, element::f32);
  EXPECT_EQ(load(file.bytes()).error, "there is no tensor 'loss'");
  file.add("loss", {2, 2}, {0, 0, 0, 0}, element::f32);
  EXPECT_EQ(load(file.bytes()).error, "tensor 'loss' is [2, 2], the model needs [2, 1]");
}

TEST(fastforward_file, policies_view_the_loaded_parts) {
  const loaded_fastforward loaded = load(skim::fastforward_writer(example(), element::f16).bytes());
  ASSERT_EQ(loaded.error, "");
  for (std::size_t layer : {0, 1}) {
    const skim::fastforward policy = loaded.model.fastforward(layer);
    EXPECT_TRUE(skim::check(policy.predictor, shape.d, shape.f).ok());
    EXPECT_TRUE(skim::check(policy.compensator, shape.d).ok());
    EXPECT_EQ(policy.predictor.w1.extents[1], layer == 0 ? 2 : 5);
    EXPECT_EQ(policy.keep.fraction, 0.3);
    EXPECT_EQ(loaded.model.calibrated_set(layer).compensator.c2.data, loaded.model.layers[layer].set_c2.data());
  }
}

TEST(fastforward_file, another_model_is_refused) {
  const std::string bytes = skim::fastforward_writer(example(), element::f32).bytes();
  EXPECT_EQ(load(bytes, {2, 32, 10, shape.act}).error, "tensor 'layers.0.query' is [24], the model needs [32]");
  EXPECT_EQ(load(bytes, {2, 24, 11, shape.act}).error, "tensor 'layers.0.w2' is [2, 10], the model needs [2, 11]");
  EXPECT_EQ(load(bytes, {3, 24, 10, shape.act}).error, "there is no tensor 'layers.2.query'");
  EXPECT_EQ(load(bytes, {1, 24, 10, shape.act}).error, "tensor 'importance' is [2], the model needs [1]");
  EXPECT_EQ(load(bytes, {2, 24, 10, skim::activation::silu}).error,
            "its activation is 'gelu_tanh', the model's is 'silu'");
  EXPECT_TRUE(load(bytes, {2, 32, 10, shape.act}).model.layers.empty());
  EXPECT_EQ(skim::load_fastforward("/nonexistent/file", shape).error, "no such file");
  EXPECT_EQ(skim::save_fastforward("/nonexistent/file", example()), "cannot be written");
}

TEST(fastforward_file, wrong_contents_are_named) {
  const auto error_of = [](const std::function<void(skim::safetensors::writer&)>& edit,
                           const fitted_model& model = example()) {
    skim::safetensors::writer file = skim::fastforward_writer(model, element::f32);
    edit(file);
    return load(file.bytes()).error;
  };
  const auto set = [](const char* name, const char* value) {
    return [=](skim::safetensors::writer& file) { file.metadata[name] = value; };
  };
  const auto nothing = [](skim::safetensors::writer&) {};
  EXPECT_EQ(error_of(nothing), "");
  EXPECT_EQ(error_of(set("format", "pt")), "not a file of fitted FastForward parts");
  EXPECT_EQ(error_of([](auto& file) { file.metadata.clear(); }), "not a file of fitted FastForward parts");
  EXPECT_EQ(error_of(set("version", "2")), "its version is '2', this library reads '1'");
  EXPECT_EQ(error_of([](auto& file) { file.metadata.erase("version"); }),
            "its version is missing, this library reads '1'");
  for (const char* const keep : {"0", "-1", "1.5", "half", "", "1e999", "0.5 "}) {
    const std::string error = error_of(set("keep.fraction", keep));
    EXPECT_EQ(error, std::string(keep) == "0.5 " ? "" : "its metadata have no valid keep.fraction or keep.count")
        << keep;
  }
  EXPECT_NE(error_of(set("keep.count", "2.5")), "");
  const std::string long_text = "0.5" + std::string(40, ' ');  // is not parsed: it might spell lists in lists
  EXPECT_NE(error_of(set("keep.fraction", long_text.c_str())), "");
  EXPECT_EQ(error_of([](auto& file) { file.add("more", {1}, {0}, element::f32); }),
            "it has 18 tensors, the model needs 17");
  fitted_model broken = example();
  broken.layers[1].c1[5] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(error_of(nothing, broken), "tensor 'layers.1.c1' has an element that is not finite");
}

TEST(fastforward_file, every_truncation_is_refused) {
  const std::string bytes = skim::fastforward_writer(example(), element::bf16).bytes();
  for (std::size_t size = 0; size < bytes.size(); size += 1 + size / 64) {
    const std::vector<char> cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
    const skim::safetensors::file file = skim::safetensors::file::view(cut.data(), cut.size());
    EXPECT_NE(skim::load_fastforward(file, shape).error, "") << size;
  }
}

TEST(fastforward_file, damaged_bytes_load_or_give_one_line) {
  const std::string good = skim::fastforward_writer(example(), element::bf16).bytes();
  std::mt19937 random(1);
  int refused = 0;
  for (int i = 0; i < 1000; ++i) {
    std::vector<char> bytes(good.begin(), good.end());
    for (int edits = 0; edits < 3; ++edits)
      bytes[random() % std::min<std::size_t>(bytes.size(), 1600)] = static_cast<char>(random());
    const loaded_fastforward loaded =
        skim::load_fastforward(skim::safetensors::file::view(bytes.data(), bytes.size()), shape);
    refused += !loaded.ok();
    EXPECT_EQ(loaded.ok(), !loaded.model.layers.empty());
    for (const char c : loaded.error) EXPECT_TRUE(c >= ' ' && c <= '~') << loaded.error;
  }
  EXPECT_GT(refused, 500);
}

TEST(safetensors_writer, tensors_are_aligned_in_any_order) {
  skim::safetensors::writer file;
  file.metadata["a"] = "b\"\n";
  file.add("narrow", {3}, {1, 2, 3}, element::f16);
  file.add("wide", {1}, {4}, element::f32);
  file.add("none", {0, 5}, {}, element::bf16);
  const std::string bytes = file.bytes();
  std::vector<double> aligned(bytes.size() / 8 + 1);
  std::memcpy(aligned.data(), bytes.data(), bytes.size());
  const skim::safetensors::file read = skim::safetensors::file::view(aligned.data(), bytes.size());
  ASSERT_EQ(read.error(), "");
  ASSERT_NE(read.metadata("a"), nullptr);
  EXPECT_EQ(*read.metadata("a"), "b\"\n");
  EXPECT_EQ(read.metadata("b"), nullptr);
  ASSERT_EQ(read.tensors().size(), 3u);
  for (const skim::safetensors::tensor& each : read.tensors()) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(each.data) % static_cast<std::uintptr_t>(each.dtype.bytes), 0u);
  }
  EXPECT_EQ(skim::load_element(read.find("narrow")->data, element::f16, 2), 3);
  EXPECT_EQ(skim::load_element(read.find("wide")->data, element::f32, 0), 4);
}

}  // namespace
