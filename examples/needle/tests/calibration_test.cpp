// SPDX-License-Identifier: Apache-2.0
/// \file Calibration: windows of text, going on after a stop, what is refused, and neurons for a stated loss.
#include "../calibration_file.hpp"
#include "../error.hpp"
#include "../unnamed_file.hpp"
#include "tiny_gguf.hpp"

#include <skim/interop/fastforward_file.hpp>

#include <nlohmann/json.hpp>

#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

namespace {

using namespace needle;
using needle_test::temporary_folder;
using needle_test::tiny_gguf;
using needle_test::tiny_model;

std::string text_of(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

/// What `action` throws, or nothing.
template <class Action>
std::string complaint(const Action& action) {
  try {
    action();
  } catch (const error& problem) {
    return problem.what();
  }
  return "";
}

std::vector<std::int32_t> counting(std::int32_t first, std::int32_t count) {
  std::vector<std::int32_t> tokens;
  for (std::int32_t i = 0; i < count; ++i) tokens.push_back(first + i);
  return tokens;
}

TEST(text_windows, lie_side_by_side_in_each_text) {
  const text_windows windows({counting(100, 17), counting(200, 3), counting(300, 8)}, {7}, 5, 1);
  ASSERT_EQ(windows.count(), 4 + 0 + 2);
  std::vector<std::vector<std::int32_t>> all;
  for (std::int64_t i = 0; i < windows.count(); ++i) all.push_back(windows.window(i));
  const auto drawn = all;
  std::sort(all.begin(), all.end());
  EXPECT_NE(all, drawn) << "shuffled";
  for (std::size_t i = 0; i < all.size(); ++i) {
    std::vector<std::int32_t> expected = {7};
    const std::int32_t first =
        i < 4 ? 100 + 4 * static_cast<std::int32_t>(i) : 300 + 4 * static_cast<std::int32_t>(i - 4);
    for (std::int32_t k = 0; k < 4; ++k) expected.push_back(first + k);
    EXPECT_EQ(all[i], expected);
  }
  const text_windows other({counting(100, 40)}, {}, 5, 2), same({counting(100, 40)}, {}, 5, 2);
  EXPECT_EQ(other.count(), 8);
  for (std::int64_t i = 0; i < 8; ++i) EXPECT_EQ(other.window(i), same.window(i));
  EXPECT_EQ(complaint([] { text_windows({counting(0, 9)}, {7}, 1, 1); }), "a window has no room for text");
}

TEST(unnamed_file, gives_back_what_was_appended_and_leaves_no_name) {
  const temporary_folder folder;
  unnamed_file file(folder.path());
  const std::string first(100000, 'a'), second = "second";
  EXPECT_EQ(file.append(first.data(), first.size()), 0);
  const std::int64_t from = file.append(second.data(), second.size());
  std::string got(second.size(), ' ');
  file.read(from, got.data(), got.size());
  EXPECT_EQ(got, second);
  got.assign(2, ' ');
  file.read(from - 1, got.data(), 2);
  EXPECT_EQ(got, "as");
  EXPECT_NE(complaint([&] { file.read(from, got.data(), 7); }).find("cannot be read"), std::string::npos);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  EXPECT_NE(complaint([] { unnamed_file("/nonexistent"); }).find("no file can be made there"), std::string::npos);
}

TEST(replace_file, keeps_what_was_there_until_the_new_one_is_whole) {
  const temporary_folder folder;
  const std::filesystem::path path = folder.path() / "file";
  const auto written = [](const char* text, const char* problem) {
    return [=](const std::filesystem::path& to) {
      std::ofstream(to) << text;
      return std::string(problem);
    };
  };
  replace_file(path, written("first", ""));
  EXPECT_EQ(text_of(path), "first");
  EXPECT_EQ(complaint([&] { replace_file(path, written("half", "the disk is full")); }),
            path.string() + ": the disk is full");
  EXPECT_EQ(text_of(path), "first");
  std::ofstream(path.string() + ".new") << "of one that was killed";
  replace_file(path, [&](const std::filesystem::path& to) {
    EXPECT_EQ(text_of(path), "first");
    return written("second", "")(to);
  });
  EXPECT_EQ(text_of(path), "second");
  EXPECT_FALSE(std::filesystem::exists(path.string() + ".new"));
}

class calibrating : public testing::Test {
 protected:
  temporary_folder folder_;
  model weights_;
  calibration_settings settings_;
  tbb::task_arena arena_{2};

  void SetUp() override {
    tiny_model().write(folder_.path());
    weights_ = read_model(folder_.path());
    settings_.shape.tokens = 200;
    settings_.chunk = 32;
    settings_.prompts = 3;
    settings_.rank = 4;
    settings_.loss_tokens = 100;
    settings_.scratch = folder_.path();
  }

  calibration run(calibration so_far = {},
                  const std::function<void(const calibration& so_far)>& after_layer = {}) const {
    std::int32_t number = 0;
    const token_source next = [&] {
      std::vector<std::int32_t> tokens = counting(0, 200);
      ++number;
      for (std::int32_t& each : tokens) each = (each * 7 + number * 13) % 1000;
      return tokens;
    };
    return calibrate(
        weights_, settings_, next, executor(const_cast<tbb::task_arena&>(arena_)),
        [](std::int64_t, std::int64_t, const std::string&) {}, std::move(so_far), after_layer);
  }
};

std::string bytes_of(const calibration& of) {
  return skim::fastforward_writer(of.model, skim::element::bf16).bytes();
}

TEST_F(calibrating, goes_on_from_its_file_with_the_same_bits) {
  const nlohmann::json settings = {{"seed", 3}};
  const std::filesystem::path part = folder_.path() / "x.part";
  std::vector<std::filesystem::path> kept;
  const calibration whole = run({}, [&](const calibration& so_far) {
    save_part(part, so_far, settings);
    kept.push_back(folder_.path() / ("after" + std::to_string(so_far.layers.size())));
    std::filesystem::copy_file(part, kept.back());
  });
  ASSERT_EQ(kept.size(), 2u);
  ASSERT_EQ(whole.model.loss.size(), 2 * settings_.loss_keep.size());
  for (const std::filesystem::path& each : kept) {
    calibration so_far = part_in(each, weights_.config, settings);
    ASSERT_EQ(so_far.layers.size(), so_far.model.layers.size());
    const std::size_t had = so_far.layers.size();
    std::size_t more = 0;
    const calibration resumed = run(std::move(so_far), [&](const calibration&) { ++more; });
    EXPECT_EQ(had + more, 2u);
    EXPECT_EQ(bytes_of(resumed), bytes_of(whole));
    ASSERT_EQ(resumed.layers.size(), 2u);
    for (std::size_t layer = 0; layer < 2; ++layer) {
      EXPECT_EQ(resumed.layers[layer].calibrated_set.compensated_error,
                whole.layers[layer].calibrated_set.compensated_error);
      EXPECT_EQ(resumed.layers[layer].oracle.recall, whole.layers[layer].oracle.recall);
      EXPECT_EQ(resumed.layers[layer].training_blocks, whole.layers[layer].training_blocks);
    }
  }
}

TEST_F(calibrating, refuses_a_file_of_other_settings_or_none_of_its_own) {
  const std::filesystem::path part = folder_.path() / "x.part";
  EXPECT_TRUE(part_in(part, weights_.config, {}).layers.empty()) << "there is none";
  std::ofstream(part) << "";
  EXPECT_TRUE(part_in(part, weights_.config, {}).layers.empty()) << "nothing was written yet";
  run({}, [&](const calibration& so_far) { save_part(part, so_far, {{"seed", 3}}); });
  const auto refusal = [&](const nlohmann::json& settings) {
    return complaint([&] { part_in(part, weights_.config, settings); });
  };
  EXPECT_EQ(refusal({{"seed", 3}}), "");
  EXPECT_EQ(refusal({{"seed", 4}}), part.string() +
                                        ": holds no beginning of this calibration: its settings are {\"seed\":3}; go "
                                        "on with those settings, or remove the file");
  model_config other = weights_.config;
  other.f = 21;
  EXPECT_NE(complaint([&] { part_in(part, other, {{"seed", 3}}); }).find("the model needs"), std::string::npos);
  std::filesystem::resize_file(part, std::filesystem::file_size(part) - 1);
  EXPECT_NE(refusal({{"seed", 3}}).find("remove the file"), std::string::npos);
}

TEST_F(calibrating, losses_fall_as_more_neurons_are_kept) {
  settings_.loss_keep = {0.1f, 0.5f, 0.95f};
  const calibration all = run();
  ASSERT_EQ(all.model.loss.size(), 6u);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    EXPECT_GT(all.model.loss[3 * layer], all.model.loss[3 * layer + 1]);
    EXPECT_GE(all.model.loss[3 * layer + 2], 0);
    EXPECT_LT(all.model.loss[3 * layer + 2], all.model.loss[3 * layer] / 4);
  }
}

TEST_F(calibrating, refuses_what_needs_too_much) {
  const auto refusal = [&](std::int64_t tokens, std::int64_t prompts) {
    settings_.shape.tokens = tokens;
    settings_.prompts = prompts;
    return complaint([&] { check(settings_, weights_.config); });
  };
  EXPECT_EQ(refusal(200, 3), "");
  EXPECT_NE(refusal(65, 3).find("no chunk between its first and its last"), std::string::npos);
  EXPECT_EQ(refusal(164, 1'000'000),  // 100 tokens, 4 blocks
            "the fit would need more than 2 GB beside the model, expected at most " +
                std::to_string(2'000'000'000 / (100 * 12 * 8 + 4 * 20 * 16)) + " prompts of that context");
  weights_.config.layers = 1'000'000'000;
  EXPECT_NE(refusal(200, 1000).find("has no room for "), std::string::npos);
}

/// The program, with the tiny model as a .gguf and a text.
class calibrate_command : public testing::Test {
 protected:
  temporary_folder folder_;

  void SetUp() override {
    std::ofstream(path("tiny.gguf"), std::ios::binary) << tiny_gguf(tiny_model()).bytes();
    std::ofstream text(path("text"));
    std::uint32_t state = 1;
    for (int i = 0; i < 6000; ++i) {
      state = state * 1664525 + 1013904223;
      text << static_cast<char>('a' + state % (i % 100 < 50 ? 13 : 26)) << (i % 5 == 4 ? " " : "");
    }
  }

  std::string path(const std::string& name) const { return (folder_.path() / name).string(); }

  /// The shell's exit status.
  int shell(const std::string& line) const {
    const int status = std::system(("exec 2>'" + path("err") + "' >'" + path("out") + "'; " + line).c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string program(const std::string& more) const {
    return std::string("'") + NEEDLE_PROGRAM + "' calibrate --model '" + path("tiny.gguf") + "' " + more;
  }
  std::string on_text(const std::string& more) const {
    return program("--text '" + path("text") + "' --context 500 --prompts 5 --rank 4 " + more);
  }
  void expect_refusal(const std::string& line, const std::string& complaint) const {
    EXPECT_EQ(shell(line), 2) << line;
    EXPECT_EQ(text_of(path("out")), "");
    EXPECT_NE(text_of(path("err")).find(complaint), std::string::npos) << text_of(path("err"));
  }
};

TEST_F(calibrate_command, fits_a_gguf_to_text_and_methods_use_it) {
  ASSERT_EQ(shell(on_text("")), 0) << text_of(path("err"));
  const std::string fitted = path("tiny.fastforward.safetensors");
  EXPECT_NE(text_of(path("out")).find("\nwrote " + fitted + "\n"), std::string::npos) << text_of(path("out"));
  EXPECT_FALSE(std::filesystem::exists(fitted + ".part"));
  const std::string evaluate = std::string("'") + NEEDLE_PROGRAM + "' --model '" + path("tiny.gguf") + "' --text '" +
                               path("text") + "' --context 700 --prompts 1 --needles 1 --questions 1 --chunk 32 ";
  const std::string methods =
      "--method dense --method fastforward:keep=0.5 --method fastforward:keep_for_loss=0.02 --method "
      "oracle:keep_for_loss=1 --method calibrated_set:keep_for_loss=0.02,compensate=on";
  ASSERT_EQ(shell(evaluate + methods), 0) << text_of(path("err"));
  EXPECT_NE(text_of(path("out")).find("\nfastforward:keep_for_loss=0.02 "), std::string::npos);
  expect_refusal(evaluate + "--method fastforward:keep_for_loss=0.1,keep=0.5", "keep and keep_for_loss both say");
  expect_refusal(evaluate + "--method oracle:keep_for_loss=0", "keep_for_loss is '0'");
  std::filesystem::remove(fitted);
  expect_refusal(evaluate + "--method oracle:keep_for_loss=0.1", "has no fastforward.safetensors");
}

TEST_F(calibrate_command, goes_on_after_a_kill_to_the_same_file) {
  ASSERT_EQ(shell(on_text("--out '" + path("whole") + "'")), 0) << text_of(path("err"));
  const std::string out = path("killed"), part = out + ".part", line = on_text("--out '" + out + "'");
  for (int tries = 0; tries < 20 && !std::filesystem::exists(part); ++tries) {  // it may end before it is killed
    std::filesystem::remove(out);
    shell(line + " & p=$!; while [ ! -s '" + part + "' ] && kill -0 $p; do sleep 0.002; done; kill -9 $p; wait $p");
  }
  ASSERT_GT(std::filesystem::file_size(part), 0u);
  EXPECT_FALSE(std::filesystem::exists(out));
  expect_refusal(line + " --seed 3", part + ": holds no beginning of this calibration");
  expect_refusal(line + " --keep 0.25", "go on with those settings, or remove the file");
  ASSERT_EQ(shell(line), 0) << text_of(path("err"));
  EXPECT_EQ(text_of(out), text_of(path("whole")));
  EXPECT_FALSE(std::filesystem::exists(part));
}

TEST_F(calibrate_command, refuses_what_it_cannot_calibrate_on) {
  expect_refusal(program(""), "a model of real text needs --text FILE");
  expect_refusal(program("--text /nonexistent"), "/nonexistent: cannot be read");
  expect_refusal(program("--text '" + path("text") + "' --context 5000"), "expected at least 4 windows of 5000");
  expect_refusal(program("--text '" + path("text") + "' --context 257"), "no chunk between its first and its last");
  std::filesystem::create_directory(path("plain"));
  tiny_model().write(path("plain"));
  expect_refusal(
      std::string("'") + NEEDLE_PROGRAM + "' calibrate --model '" + path("plain") + "' --text '" + path("text") + "'",
      "--text needs a model with a vocabulary");
}

}  // namespace
