// SPDX-License-Identifier: Apache-2.0
/// \file The program as a user meets it: what it prints, writes and refuses.
#include "../tuning.hpp"
#include "tiny_gguf.hpp"

#include <sys/wait.h>

#include <cmath>
#include <cstdlib>
#include <iterator>
#include <sstream>

namespace {

using needle_test::temporary_folder;
using needle_test::tiny_model;

struct outcome {
  int status = 0;
  std::string out, err;
};

std::string text_of(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

class command : public testing::Test {
 protected:
  temporary_folder folder_;

  std::string path(const std::string& name) const { return (folder_.path() / name).string(); }

  /// Killed after `seconds`: what it has to tell before its work is told by then.
  outcome run(const std::string& arguments, const char* seconds = "300") const {
    const std::string line = std::string("timeout -s KILL ") + seconds + " '" + NEEDLE_PROGRAM + "' " + arguments +
                             " >'" + path("out") + "' 2>'" + path("err") + "' </dev/null";
    outcome result;
    const int status = std::system(line.c_str());
    result.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    result.out = text_of(path("out"));
    result.err = text_of(path("err"));
    return result;
  }

  /// A small run of the tiny model, with `more` arguments.
  std::string small(const std::string& more) const {
    return "--model '" + folder_.path().string() + "' --context 300 --needles 4 --questions 2 --prompts 1 " + more;
  }

  void expect_refusal(const std::string& arguments, const std::string& complaint) const {
    const outcome result = run(arguments);
    EXPECT_EQ(result.status, 2) << arguments;
    EXPECT_EQ(result.out, "") << arguments;
    EXPECT_EQ(result.err.rfind("needle: ", 0), 0u) << arguments << ": " << result.err;
    EXPECT_EQ(std::count_if(result.err.begin(), result.err.end(), [](char c) { return c < ' ' || c > '~'; }), 1)
        << arguments << ": " << result.err;  // the line's end
    EXPECT_NE(result.err.find(complaint), std::string::npos) << arguments << ": " << result.err;
  }
};

TEST_F(command, prints_a_table_and_writes_the_same_as_json) {
  tiny_model().write(folder_.path());
  const outcome result =
      run(small("--method dense --method quoka:budget=64,n=4 --method 'caote(snapkv):budget=64' --chunk 32 --json '" +
                path("json") + "'"));
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.err, "");
  EXPECT_EQ(result.out.rfind("method ", 0), 0u) << result.out;
  EXPECT_NE(result.out.find("\nquoka:budget=64,n=4 "), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("\ncaote(snapkv):budget=64 "), std::string::npos) << result.out;
  EXPECT_NE(result.out.find(" evict "), std::string::npos) << result.out;
  EXPECT_NE(result.out.find(" MiB\n"), std::string::npos) << result.out;
  EXPECT_EQ(std::count(result.out.begin(), result.out.end(), '\n'), 4);

  const nlohmann::json written = nlohmann::json::parse(text_of(path("json")));
  EXPECT_EQ(written.size(), 3u);
  EXPECT_TRUE(written.contains("machine"));
  EXPECT_EQ(written["settings"]["context"], 300);
  EXPECT_EQ(written["settings"]["kv"], "bf16");
  EXPECT_EQ(written["settings"]["generate"], 0);
  ASSERT_EQ(written["results"].size(), 3u);
  const char* const fields[] = {"method",
                                "accuracy",
                                "accuracy_of_dense",
                                "nll",
                                "nll_over_dense",
                                "nll_over_dense_error",
                                "mass",
                                "mass_of_worst",
                                "mass_of_layer",
                                "ttft_ms",
                                "ttft_speedup",
                                "select_ms",
                                "attention_ms",
                                "ffn_ms",
                                "evict_ms",
                                "decode_ms_per_token",
                                "kv_tokens_read",
                                "kv_bytes_held"};
  for (const nlohmann::json& row : written["results"]) {
    EXPECT_EQ(row.size(), std::size(fields));
    for (const char* field : fields) EXPECT_TRUE(row.contains(field)) << field;
  }
  EXPECT_EQ(written["results"][0]["ttft_speedup"], 1.0);
  EXPECT_EQ(written["results"][1]["method"], "quoka:budget=64,n=4");
  EXPECT_TRUE(written["results"][0]["mass"].is_null()) << "everything was read";
  EXPECT_GT(written["results"][1]["mass"], 0.2);
  EXPECT_LT(written["results"][1]["mass"], 1.0);
  EXPECT_LT(written["results"][1]["mass_of_worst"], written["results"][1]["mass"]);
  const nlohmann::json& layers_of = written["results"][1]["mass_of_layer"];
  ASSERT_EQ(layers_of.size(), 2u);
  EXPECT_NEAR((layers_of[0].get<double>() + layers_of[1].get<double>()) / 2, written["results"][1]["mass"], 1e-9);
  EXPECT_EQ(written["results"][0]["nll_over_dense"], 0.0);
  EXPECT_NEAR(written["results"][1]["nll_over_dense"],
              written["results"][1]["nll"].get<double>() - written["results"][0]["nll"].get<double>(), 1e-9);
  EXPECT_TRUE(written["results"][1]["nll_over_dense_error"].is_null()) << "of one prompt";
  EXPECT_TRUE(written["results"][2]["mass"].is_null()) << "everything that was held was read";
  EXPECT_EQ(written["results"][0]["evict_ms"], 0.0);
  EXPECT_GT(written["results"][2]["evict_ms"], 0.0);
  EXPECT_TRUE(written["results"][0]["decode_ms_per_token"].is_null());
  const std::int64_t layers = 2, heads = 2, token = 2 * 8 * 2, position = 4, weight = 4;
  EXPECT_EQ(written["results"][0]["kv_bytes_held"], layers * heads * 299 * token);
  EXPECT_EQ(written["results"][2]["kv_bytes_held"], layers * heads * (64 + 32) * (token + position + weight));
}

TEST_F(command, a_table_that_cannot_be_written_is_an_error) {
  tiny_model().write(folder_.path());
  // A shell of its own, since `run` reads what was written, and that file has no end.
  const outcome result = run("--help >/dev/null; ('" NEEDLE_PROGRAM "' " + small("--method dense") + " >/dev/full)");
  EXPECT_EQ(result.status, 2);
  EXPECT_NE(result.err.find("cannot be written to standard output"), std::string::npos) << result.err;
}

TEST_F(command, masses_are_measured_off_the_clock_and_change_no_result) {
  tiny_model().write(folder_.path());
  const std::string methods =
      "--method quoka:budget=64,n=4+keydiff:budget=128 --chunk 32 --json '" + path("json") + "' ";
  ASSERT_EQ(run(small(methods)).status, 0);
  const nlohmann::json measured = nlohmann::json::parse(text_of(path("json")))["results"][0];
  ASSERT_EQ(run(small(methods + "--mass-prompts 0")).status, 0);
  const nlohmann::json plain = nlohmann::json::parse(text_of(path("json")))["results"][0];
  EXPECT_LT(measured["mass"], 1.0);
  EXPECT_TRUE(plain["mass"].is_null());
  EXPECT_TRUE(plain["mass_of_worst"].is_null());
  for (const char* same : {"accuracy", "nll", "kv_tokens_read", "kv_bytes_held"})
    EXPECT_EQ(measured[same], plain[same]);
}

TEST_F(command, tunes) {
  tiny_model().write(folder_.path());
  const outcome result =
      run("tune " + small("--budgets 32,64 --queries 4,8 --share 0 --chunk 32 --json '" + path("json") + "'"));
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.out.find("\nquoka:n=4,budget=32 "), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("\nquoka:n=8,budget=64 "), std::string::npos) << result.out;
  const nlohmann::json written = nlohmann::json::parse(text_of(path("json")));
  EXPECT_EQ(written["results"].size(), 5u);
  EXPECT_EQ(written["share"], 0.0);
  EXPECT_EQ(written["proposal"].get<std::string>().rfind("quoka:n=", 0), 0u);
  expect_refusal("tune --budgets 0", "--budgets");
  expect_refusal("tune --queries 8,x", "--queries");
  expect_refusal("tune --share 1.5", "--share");
  expect_refusal("tune --prompts 1000000 --share nan", "share is nan");
  expect_refusal("tune --method dense", "--method");
}

TEST(tuning, proposes_the_quickest_that_keeps_the_share) {
  std::vector<needle::evaluation_result> results(4);
  const std::int64_t rights[] = {80, 50, 76, 79};
  const double times[] = {10, 1, 3, 4};
  for (std::size_t i = 0; i < results.size(); ++i) {
    needle::prompt_result one;
    one.answers = 100;
    one.right = rights[i];
    one.ttft_ms = times[i];
    results[i].prompts.push_back(one);
  }
  EXPECT_EQ(needle::cheapest(results, 0.5), &results[1]);
  EXPECT_EQ(needle::cheapest(results, 0.95), &results[2]);
  EXPECT_EQ(needle::cheapest(results, 0.98), &results[3]);
  EXPECT_EQ(needle::cheapest(results, 1), nullptr);
}

TEST_F(command, generates_under_a_bounded_cache) {
  tiny_model().write(folder_.path());
  const outcome result =
      run(small("--method dense --method keydiff:budget=64+quoka:budget=16 --generate 5 --show --chunk 32 "
                "--json '" +
                path("json") + "'"));
  ASSERT_EQ(result.status, 0) << result.err;
  const std::size_t answer = result.out.find("\nkeydiff:budget=64+quoka:budget=16  ");
  ASSERT_NE(answer, std::string::npos) << result.out;
  const std::string line = result.out.substr(answer + 1, result.out.find('\n', answer + 1) - answer - 1);
  std::istringstream words(line.substr(0, line.find("  (wrong)")));
  EXPECT_EQ(std::distance(std::istream_iterator<std::string>(words), {}), 1 + 5) << line;
  EXPECT_NE(result.out.find(" a token more\n"), std::string::npos) << result.out;
  const nlohmann::json written = nlohmann::json::parse(text_of(path("json")));
  EXPECT_EQ(written["settings"]["generate"], 5);
  for (const nlohmann::json& row : written["results"]) EXPECT_GT(row["decode_ms_per_token"], 0.0);
  EXPECT_EQ(written["results"][0]["kv_bytes_held"], 2 * 2 * (299 + 5) * 2 * 8 * 2);
}

TEST_F(command, calibrates_and_uses_what_it_wrote) {
  tiny_model().write(folder_.path());
  const std::string model = "--model '" + folder_.path().string() + "'";
  const std::string fast = small(
      "--method fastforward:keep=0.5 --method dense --method calibrated_set:keep=0.5+dense "
      "--method fastforward:keep=0.5,schedule=attention,compensate=off");
  expect_refusal(fast, "has no fastforward.safetensors");
  outcome result = run("calibrate " + model + " --context 500 --prompts 3");
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_EQ(result.out.rfind("layer ", 0), 0u) << result.out;
  EXPECT_NE(result.out.find("\nwrote " + path("fastforward.safetensors") + "\n"), std::string::npos) << result.out;
  result = run(fast + " --chunk 32");
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.out.find("\nfastforward:keep=0.5 "), std::string::npos) << result.out;

  ASSERT_EQ(run("calibrate " + model + " --context 500 --prompts 3 --threads 1 --out '" + path("again") + "'").status,
            0);
  EXPECT_EQ(text_of(path("again")), text_of(path("fastforward.safetensors"))) << "the same seed, other threads";
  std::ofstream(path("fastforward.safetensors"), std::ios::trunc) << "cut short";
  expect_refusal(small("--method dense"), "fastforward.safetensors: ");
}

TEST_F(command, refuses_bad_calibrations) {
  tiny_model().write(folder_.path());
  const std::string calibrate = "calibrate --model '" + folder_.path().string() + "' ";
  expect_refusal(calibrate + "--prompts 1", "--prompts");
  expect_refusal(calibrate + "--context 257", "no chunk between its first and its last");
  expect_refusal(calibrate + "--keep 0", "--keep");
  expect_refusal(calibrate + "--method dense", "--method");
  const std::string years = calibrate + "--context 5000 --prompts 1000000 ";
  expect_refusal(years + "--keep nan", "keep is nan");
  expect_refusal(years + "--keep inf", "--keep");
  expect_refusal(years + "--seed -1", "--seed");
  expect_refusal(years + "--out /nonexistent/file", "/nonexistent/file: cannot be written");
  std::filesystem::create_directory(folder_.path() / "there");
  expect_refusal(years + "--out '" + path("there") + "'", "there: is there and is no file");
  expect_refusal(years + "--out /dev/null", "/dev/null: is there and is no file");
  const std::string weights = text_of(path("model.safetensors"));
  expect_refusal(years + "--out '" + path("model.safetensors") + "'", "model.safetensors: holds no fitted parts");
  EXPECT_EQ(text_of(path("model.safetensors")), weights);
}

TEST_F(command, leaves_nothing_behind_when_it_is_killed) {
  tiny_model().write(folder_.path());
  const std::string kept = R"({"settings": {}, "results": []})";
  std::ofstream(path("older")) << kept;
  const std::string model = "--model '" + folder_.path().string() + "' --prompts 4000 --context ";
  EXPECT_EQ(run("calibrate " + model + "5000", "2").status, 128 + 9);
  std::ofstream(path("empty")) << "";
  EXPECT_EQ(run("calibrate " + model + "5000 --out '" + path("empty") + "'", "2").status, 128 + 9);
  EXPECT_EQ(run(model + "8192 --json '" + path("json") + "'", "2").status, 128 + 9);
  EXPECT_EQ(run(model + "8192 --json '" + path("older") + "'", "2").status, 128 + 9);
  std::vector<std::string> names;
  for (const auto& each : std::filesystem::directory_iterator(folder_.path())) {
    names.push_back(each.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names, (std::vector<std::string>{"config.json", "empty", "err", "model.safetensors", "older", "out"}));
  EXPECT_EQ(text_of(path("empty")), "");
  EXPECT_EQ(text_of(path("older")), kept);
}

TEST_F(command, shows_a_question_and_each_answer) {
  tiny_model().write(folder_.path());
  const outcome result = run(small("--show --method sink_window:budget=64"));
  ASSERT_EQ(result.status, 0) << result.err;
  EXPECT_NE(result.out.find("note the code of "), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("question the code of "), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("right answer "), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("\nsink_window:budget=64  "), std::string::npos) << result.out;
}

TEST_F(command, answers_without_dense_have_no_speedup) {
  tiny_model().write(folder_.path());
  ASSERT_EQ(run(small("--method sink_window:budget=64 --threads 1 --kv f32 --json '" + path("json") + "'")).status, 0);
  EXPECT_TRUE(nlohmann::json::parse(text_of(path("json")))["results"][0]["ttft_speedup"].is_null());
}

TEST_F(command, weights_that_are_no_numbers_give_results_that_are_none) {
  tiny_model tiny;
  tiny.tensors["model.norm.weight"].values.assign(12, std::nanf(""));
  tiny.tensors["model.layers.0.self_attn.k_proj.weight"].values.assign(16 * 12, std::nanf(""));
  tiny.write(folder_.path());
  const outcome result = run(small("--method dense --method quoka:budget=32 --show --json '" + path("json") + "'"));
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_TRUE(nlohmann::json::parse(text_of(path("json")))["results"][1]["nll"].is_null());
}

TEST_F(command, helps) {
  const outcome result = run("--help");
  EXPECT_EQ(result.status, 0);
  for (const char* option :
       {"--model", "--context", "--prompts", "--questions", "--needles", "--chunk", "--seed", "--threads", "--kv",
        "--method", "--json", "--show", "--generate", "--text", "--resume", "--untimed"}) {
    EXPECT_NE(result.out.find(option), std::string::npos) << option;
  }
}

TEST_F(command, refuses_bad_arguments) {
  expect_refusal("--nonsense", "--nonsense");
  expect_refusal("nonsense", "nonsense");
  expect_refusal("--model nonsense", "model 'nonsense' is not qwen2, llama, a directory or a .gguf");
  expect_refusal("--model \"$(printf 'no\\033[31m\\302\\233m\\233m\\rsuch')\"", "model 'no?[31m?m?m?such' is not");
  expect_refusal("--context many", "--context");
  expect_refusal("--context 0", "--context");
  expect_refusal("--context -5", "--context");
  expect_refusal("--context 99999999999999999999", "--context");
  expect_refusal("--context 100", "expected at least 193");
  expect_refusal("--prompts 0", "--prompts");
  expect_refusal("--chunk 0", "--chunk");
  expect_refusal("--threads 0", "--threads");
  expect_refusal("--seed x", "--seed");
  expect_refusal("--seed -1 --prompts 1000000", "--seed");
  expect_refusal("--kv f64", "f64");
  expect_refusal("--questions 17", "expected 1 to the number of needles, 16");
  expect_refusal("--needles 300", "expected 1 to 256");
  expect_refusal("--method", "--method");
  expect_refusal("--generate -1", "--generate");
  expect_refusal("--method best", "valid are: dense, quoka, sink_window, standard, ");
  expect_refusal("--method random", "write evict(random) for an evictor");
  expect_refusal("--method quoka:queries=best", "valid are: needed, lowest_cosine,");
  expect_refusal("--method dense --method quoka:budget=0", "budget is '0'");
  expect_refusal("--json /nonexistent/file", "/nonexistent/file: cannot be written");
}

TEST_F(command, refuses_bad_files) {
  expect_refusal(small(""), "config.json: cannot be opened");
  std::ofstream(path("config.json")) << "{";
  expect_refusal(small(""), "config.json: not a JSON object");
  tiny_model tiny;
  tiny.config["rope_scaling"] = {{"rope_type", "yarn"}};
  tiny.write(folder_.path());
  expect_refusal(small(""), "is not supported (\"default\", \"linear\" and \"llama3\" are)");
  tiny_model().write(folder_.path());
  std::filesystem::resize_file(path("model.safetensors"), std::filesystem::file_size(path("model.safetensors")) - 1);
  expect_refusal(small(""), "lies outside the file");
  std::filesystem::resize_file(path("model.safetensors"), 100);
  expect_refusal(small(""), "the header claims");
  std::filesystem::resize_file(path("model.safetensors"), 3);
  expect_refusal(small(""), "too short for a safetensors file");
  std::filesystem::remove(path("model.safetensors"));
  expect_refusal(small(""), "has neither model.safetensors nor model.safetensors.index.json");
  tiny.config.erase("rope_scaling");
  tiny.config["vocab_size"] = 1000;
  tiny.add("model.embed_tokens.weight", "F32", {1000, 12});
  tiny.add("lm_head.weight", "F32", {1000, 12});
  tiny.write(folder_.path());
  expect_refusal(small(""), "the model knows 1000 tokens, needle prompts use 1088");
}

TEST_F(command, reads_no_text_without_a_real_model) {
  std::ofstream(path("text")) << "some text";
  const std::string text = " --text '" + path("text") + "'";
  expect_refusal("read", "--model");
  expect_refusal("read --model '" + path("none.gguf") + "'", "--text");
  expect_refusal("read --model '" + path("none.gguf") + "'" + text,
                 "none.gguf' is not qwen2, llama, a directory or a .gguf");
  expect_refusal("read --model '" + path("text") + "'" + text, "it does not begin with 'GGUF'");
  expect_refusal("read --model a.gguf --text '" + path("none") + "'", "none: cannot be read, expected a file");
  expect_refusal("read --model a.gguf --context 0" + text, "--context");
  expect_refusal("read --model a.gguf --method best" + text, "valid are: dense, quoka");
  expect_refusal("read --model '" + std::string(NEEDLE_GOLDENS) + "/smollm.gguf'" + text,
                 "llama.embedding_length is not");
}

/// The tiny model as GGUF and a text of letters; the arguments that name both.
class command_with_text : public command {
 protected:
  command_with_text() {
    std::ofstream(path("model.gguf"), std::ios::binary) << needle_test::tiny_gguf(tiny_model()).bytes();
    std::ofstream text(path("text"));
    for (int i = 0; i < 2000; ++i) text << (i % 37 == 36 ? '.' : static_cast<char>('a' + i * i % 26));
  }
  std::string given() const { return "--model '" + path("model.gguf") + "' --text '" + path("text") + "' "; }
  std::string table(const std::string& more) const {
    return given() + "--context 900 --needles 3 --questions 2 --chunk 64 --json '" + path("json") + "' " + more;
  }
  nlohmann::json results() const { return nlohmann::json::parse(text_of(path("json")))["results"]; }
};

TEST_F(command_with_text, hides_facts_in_it) {
  const outcome result = run(table("--prompts 2 --method dense --method quoka:budget=64,n=4"));
  ASSERT_EQ(result.status, 0) << result.err;
  const nlohmann::json written = nlohmann::json::parse(text_of(path("json")));
  EXPECT_EQ(written["settings"]["model"], "model.gguf") << "not where it lies";
  EXPECT_EQ(written["settings"]["text"], "text");
  EXPECT_FALSE(written["results"][0].contains("prompts"));
  EXPECT_GT(written["results"][0]["nll"], 0.0);
  EXPECT_FALSE(written["results"][1]["nll_over_dense_error"].is_null());
}

TEST_F(command_with_text, goes_on_where_it_was) {
  const std::string methods = "--method dense --method quoka:budget=64,n=4 --resume --untimed ";
  ASSERT_EQ(run(table("--prompts 3 " + methods)).status, 0);
  const std::string whole = text_of(path("json"));
  for (const nlohmann::json& row : results()) {
    EXPECT_EQ(row["prompts"].size(), 3u);
    EXPECT_TRUE(row["ttft_ms"].is_null()) << "untimed";
  }
  std::filesystem::remove(path("json"));
  ASSERT_EQ(run(table("--prompts 1 --method dense --resume --untimed")).status, 0);
  ASSERT_EQ(run(table("--prompts 2 " + methods)).status, 0);
  ASSERT_EQ(run(table("--prompts 3 " + methods)).status, 0);
  EXPECT_EQ(text_of(path("json")), whole) << "the same as in one go";
  // What is there is not computed again: another accuracy stays.
  nlohmann::json changed = nlohmann::json::parse(whole);
  changed["results"][0]["prompts"][0]["right"] = 5;
  std::ofstream(path("json")) << changed;
  const outcome again = run(table("--prompts 3 --method quoka:budget=64,n=4 --resume --untimed"));
  ASSERT_EQ(again.status, 0);
  EXPECT_EQ(again.out.find("\ndense "), std::string::npos) << "it shows what was asked for";
  EXPECT_EQ(results()[0]["method"], "quoka:budget=64,n=4");
  EXPECT_EQ(results()[1]["prompts"][0]["right"], 5) << "rows that were not asked for are kept";
}

TEST_F(command_with_text, refuses_what_does_not_go_together) {
  ASSERT_EQ(run(table("--prompts 1 --method dense --resume")).status, 0);
  expect_refusal(table("--prompts 1 --method dense --resume --seed 2"), "holds results of other settings");
  ASSERT_EQ(run(table("--prompts 2 --method dense --resume")).status, 0);
  expect_refusal(table("--prompts 1 --method dense --resume"), "holds 2 prompts of dense, --prompts is 1");
  expect_refusal(given() + "--judged nan", "--judged");
  for (const char* const file : {"model.gguf", "text"}) {  // no file is written over but one of results
    const std::string before = text_of(path(file));
    expect_refusal(given() + "--context 900 --needles 3 --questions 2 --json '" + path(file) + "'", "holds no results");
    EXPECT_EQ(text_of(path(file)), before);
  }
  expect_refusal("--model '" + path("model.gguf") + "' --resume", "--json");
  // A file of the same name and other words is another text.
  const std::string words = text_of(path("text"));
  std::ofstream(path("text"), std::ios::trunc) << words << "more.";
  expect_refusal(table("--prompts 1 --method dense --resume"), "holds results of other settings");
  std::ofstream(path("text"), std::ios::trunc) << words;
  std::ofstream(path("empty")) << "";
  expect_refusal("read --model '" + path("model.gguf") + "' --text '" + path("empty") + "'", "empty: is empty");
  expect_refusal("--context 512 read " + given(), "options stand behind the verb: --context");
  std::ofstream(path("json"), std::ios::trunc) << "{}";
  expect_refusal(table("--resume"), "holds no results that --resume has written");
  std::ofstream(path("json"), std::ios::trunc) << "[";
  expect_refusal(table("--resume"), "holds no results that --resume has written");
  expect_refusal("--model '" + path("model.gguf") + "'", "needs --text FILE");
  expect_refusal("--model qwen2 --text '" + path("text") + "'", "has none");
  expect_refusal(given() + "--context 900 --needles 17", "1 to 16 needles");
  expect_refusal(given() + "--context 900 --questions 9", "1 to 16 needles and 1 to as many questions");
  expect_refusal(given() + "--context 900 --questions 2 --show", "--show");
  expect_refusal(given() + "--context 100", "leaves no room for text");
  expect_refusal(given() + "--context 100000", "the text has 2000 tokens, a prompt needs");
  expect_refusal(given() + "--text '" + path("none") + "'", "--text");
}

TEST_F(command_with_text, is_asked_for_a_fact) {
  const outcome result =
      run("read " + given() + "--context 600 --generate 3 --method dense --method quoka:budget=64,n=4");
  EXPECT_EQ(result.status, 0) << result.err;
  // The tiny vocabulary has no capitals and no spaces.
  EXPECT_EQ(result.out.rfind("hidden in 5", 0), 0u) << result.out;
  for (const char* const part :
       {"uestion", "nswer", "hesecretnumberofthe", "\ndense: ", "\nquoka:budget=64,n=4: ", "100 %"})
    EXPECT_NE(result.out.find(part), std::string::npos) << part << ":\n" << result.out;
  EXPECT_NE(run("read " + given() + "--context 600 --generate 1 --method dense --seed 5").out, result.out);
  EXPECT_EQ(run("read " + given() + "--context 600 --generate 1 --method dense --plain").out.rfind("dense: ", 0), 0u);
  EXPECT_EQ(run("read " + given() + "--generate 1 --method dense").out.rfind("hidden in 19", 0), 0u)
      << "all of the text";
}

TEST_F(command_with_text, says_what_lies_beyond_its_training) {
  needle_test::tiny_gguf file{tiny_model()};
  file.settings.push_back({"context_length", 500});
  std::ofstream(path("model.gguf"), std::ios::binary) << file.bytes();
  const char* const note = "reach beyond the 500 positions that the model was trained on";
  EXPECT_NE(run("read " + given() + "--context 600 --generate 1 --method dense").err.find(note), std::string::npos);
  EXPECT_EQ(run("read " + given() + "--context 400 --generate 1 --method dense").err, "");
  EXPECT_NE(run(table("--prompts 1 --method dense")).err.find(note), std::string::npos);
}

TEST_F(command_with_text, is_talked_about) {
  needle_test::tiny_gguf file{tiny_model()};
  file.talks = true;
  file.settings.push_back({"context_length", 500});
  std::ofstream(path("model.gguf"), std::ios::binary) << file.bytes();
  const std::string model = "--model '" + path("model.gguf") + "' ";
  const auto said = [&](const std::string& lines) { return "printf '" + lines + "' | "; };
  const auto talk = [&](const std::string& lines, const std::string& more) {
    // `run` puts its redirections behind the program's arguments: the pipe stands inside a shell of its own.
    const std::string line = said(lines) + "'" NEEDLE_PROGRAM "' talk " + model + more;
    std::ofstream(path("talk.sh")) << line;
    const int status =
        std::system(("sh '" + path("talk.sh") + "' >'" + path("out") + "' 2>'" + path("err") + "'").c_str());
    return outcome{WIFEXITED(status) ? WEXITSTATUS(status) : -1, text_of(path("out")), text_of(path("err"))};
  };
  const outcome three = talk("abc\\ndef\\nghi\\n", "--generate 4 --method standard:budget=16 --chunk 8");
  EXPECT_EQ(three.status, 0) << three.err;
  EXPECT_EQ(std::count(three.err.begin(), three.err.end(), '\n'), 3) << three.err;
  EXPECT_NE(three.err.find(" 24 held;"), std::string::npos) << "the budget and a chunk: " << three.err;
  std::string many;
  for (int i = 0; i < 40; ++i) many += "abcdefghijklmnop\\n";
  const outcome full = talk(many, "--generate 4 --method standard:budget=16");
  EXPECT_EQ(full.status, 2);
  EXPECT_NE(full.err.find("a conversation of 500 tokens has no room"), std::string::npos) << full.err;
  const outcome beyond = talk(many, "--generate 4 --method standard:budget=16 --context 4000");
  EXPECT_EQ(beyond.status, 0) << beyond.err;
  EXPECT_NE(beyond.err.find("beyond the 500 positions"), std::string::npos) << beyond.err;
  EXPECT_EQ(beyond.err.find("beyond the 500"), beyond.err.rfind("beyond the 500")) << "said once";
  file.talks = false;
  std::ofstream(path("model.gguf"), std::ios::binary) << file.bytes();
  EXPECT_NE(talk("abc\\n", "").err.find("no form of conversations"), std::string::npos);
  EXPECT_EQ(talk("", "").status, 2) << "it is said before anything is";
}

TEST_F(command_with_text, is_read_and_answered) {
  const std::string read = "read " + given();
  const outcome result =
      run(read + "--context 300 --question xyz --generate 3 --method dense --method quoka:budget=64,n=4");
  EXPECT_EQ(result.status, 0) << result.err;
  for (const char* const part : {"dense: ", "\nmethod ", "perplexity", "quoka:budget=64,n=4 ", "+0.00 %", "1.00x"})
    EXPECT_NE(result.out.find(part), std::string::npos) << part << ":\n" << result.out;
  // Chunks of 128, 128 and 44 tokens behind 0, 128 and 256: the question's own tokens are no part of it.
  EXPECT_NE(result.out.find("      128    100 %\n"), std::string::npos) << result.out;
  const outcome short_one = run(read + "--plain --context 2 --generate 1 --method dense");
  EXPECT_EQ(short_one.status, 0) << short_one.err;
  EXPECT_EQ(short_one.out.find("1.000"), std::string::npos) << "nothing was judged: " << short_one.out;
  expect_refusal(read + "--context 3 --question xyz", "leaves no room for text beside the question");
  expect_refusal(read + "--method dense --method fastforward", "has no fastforward.safetensors");
}

}  // namespace
