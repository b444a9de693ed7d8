// SPDX-License-Identifier: Apache-2.0
/// \file needle: prefills needle-in-a-haystack prompts with several methods and shows what each costs and saves.
#include "calibration_file.hpp"
#include "error.hpp"
#include "opened.hpp"
#include "output.hpp"
#include "reading.hpp"
#include "talking.hpp"
#include "tuning.hpp"
#include "unnamed_file.hpp"

#include <skim/interop/fastforward_file.hpp>

#include <oneapi/tbb/global_control.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iostream>

namespace {

using namespace needle;

/// What is prefilled, and how.
struct workload_line {
  std::string model = "qwen2", text, kv = "bf16", json;
  bool resume = false;
  std::optional<std::int64_t> needles;
  double judged = 0.25;
  evaluation_settings settings;
  int threads = tbb::this_task_arena::max_concurrency();
};

struct evaluation_line : workload_line {
  std::vector<std::string> methods = {"dense", "quoka:budget=512", "quoka:queries=lowest_cosine,n=16,budget=512"};
  bool show = false;
};

struct tuning_line : workload_line {
  tuning_settings tuning;
};

struct calibration_line {
  std::string model = "qwen2", out;
  std::vector<std::string> texts;
  std::optional<std::int64_t> context;
  calibration_settings settings;
  int threads = tbb::this_task_arena::max_concurrency();
};

struct reading_line {
  std::string model, text, kv = "bf16";
  std::vector<std::string> methods = {"dense", "quoka:budget=512"};
  reading_settings settings;
  bool plain = false;
  int threads = tbb::this_task_arena::max_concurrency();
};

struct talking_line {
  std::string model, text, kv = "bf16", method = "quoka:budget=512";
  talking_settings settings;
  int threads = tbb::this_task_arena::max_concurrency();
};

constexpr std::int64_t most_tokens = 1'000'000;

CLI::App* add_calibration(CLI::App& app, calibration_line& line) {
  CLI::App* const command =
      app.add_subcommand("calibrate", "fits FastForward's predictors and compensators to a model's FFNs");
  calibration_settings& settings = line.settings;
  command
      ->add_option("--model", line.model,
                   "qwen2, llama, a directory with config.json and model.safetensors or its index, or a .gguf")
      ->capture_default_str();
  command
      ->add_option(
          "--text", line.texts,
          "repeats; a file of real text, for a .gguf: prompts are windows of it that do not overlap, drawn by\n"
          "--seed. Not the text that will judge. Without it, the made-up language of qwen2 and llama")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command
      ->add_option("--prompts", settings.prompts,
                   "prompts to learn from, at most, in --text; an eighth of them judge, and 2 more measure losses")
      ->check(CLI::Range(std::int64_t{2}, most_tokens))
      ->capture_default_str();
  command->add_option("--context", line.context, "tokens in a prompt; otherwise 8192, in --text 2048")
      ->check(CLI::Range(std::int64_t{1}, most_tokens));
  command->add_option("--keep", settings.keep, "share of the neurons that sparse blocks will compute")
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str();
  command->add_option("--rank", settings.rank, "width of the predictors' hidden layer")
      ->check(CLI::Range(std::int64_t{1}, most_tokens))
      ->capture_default_str();
  command->add_option("--seed", settings.seed, "the same seed, the same prompts and parts")
      ->check(CLI::NonNegativeNumber)  // -1 would be a large one
      ->capture_default_str();
  command->add_option("--threads", line.threads, "default: one per core")->check(CLI::Range(1, 1024));
  command->add_option(
      "--out", line.out,
      "file to write; default: fastforward.safetensors in the model's directory, or beside a .gguf with its name "
      "before\n"
      "it. While it runs, it needs 2 bytes of disk there for each token, layer and feature of the model, and at most 2 "
      "GB\n"
      "of memory beside the model; FILE.part holds the layers so far: after a kill, the same command goes on there");
  return command;
}

void show_defaults(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_items_expected() > 0 && option->get_name() != "--json" && option->get_name() != "--method") {
      option->capture_default_str();
    }
  }
}

void add_workload(CLI::App& app, workload_line& line) {
  evaluation_settings& settings = line.settings;
  app.add_option("--model", line.model,
                 "qwen2, llama, a directory with config.json and model.safetensors or its index, or a .gguf of the\n"
                 "architectures of Llama 2 and 3, Qwen2, Qwen3 or Gemma 3");
  app.add_option("--text", line.text,
                 "a file: prompts are text of it from places that --seed chooses, with facts hidden between its\n"
                 "sentences. Without it, the made-up language of qwen2 and llama");
  app.add_option("--judged", line.judged, "the last share of such a prompt, whose text is judged by its loss")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--context", settings.shape.tokens, "tokens in a prompt")
      ->check(CLI::Range(std::int64_t{1}, most_tokens));
  app.add_option("--prompts", settings.prompts, "how many prompts")->check(CLI::Range(std::int64_t{1}, most_tokens));
  app.add_option("--questions", settings.shape.questions, "questions at the end of a prompt");
  app.add_option("--needles", line.needles, "facts hidden in a prompt; otherwise 16, in --text 8, there at most 16");
  app.add_option("--chunk", settings.chunk, "tokens prefilled at a time")
      ->check(CLI::Range(std::int64_t{1}, most_tokens));
  app.add_option("--seed", settings.seed, "the same seed, the same prompts")->check(CLI::NonNegativeNumber);
  app.add_option("--threads", line.threads, "default: one per core")->check(CLI::Range(1, 1024));
  app.add_option("--kv", line.kv, "element type of the KV cache")->check(CLI::IsMember({"f32", "f16", "bf16", "q8_0"}));
  app.add_option(
         "--mass-prompts", settings.mass_prompts,
         "prompts in which dense attention runs beside, off the clock, and says which share of the softmax the\n"
         "chosen keys receive: its mean over rows, heads and layers, and what the worst twentieth does not exceed")
      ->check(CLI::Range(std::int64_t{0}, most_tokens));
  app.add_flag("!--untimed", settings.timed, "leave times out, on a machine that does other work beside");
  CLI::Option* const json = app.add_option("--json", line.json, "also write the results to this file");
  app.add_flag("--resume", line.resume,
               "write each prompt's results to that file as they come, and go on with those that it holds")
      ->needs(json);
}

void add_options(CLI::App& app, evaluation_line& line) {
  add_workload(app, line);
  evaluation_settings& settings = line.settings;
  app.add_option("--generate", settings.generate,
                 "tokens to decode greedily after each prompt: reports the time of one; --show prints them")
      ->check(CLI::Range(std::int64_t{0}, most_tokens));
  app.add_option(
         "--method", line.methods,
         "repeats; default: dense, QUOKA by our rule and by the paper's. table:select,\n"
         "table:evict, table:ffn = the rows of models/README.md, table = all;\n"
         "table:budgets, table:bounded, table:neurons = those for a model of one's own.\n"
         "Else a part of each kind, joined by +. What a chunk reads:\n"
         "dense\n"
         "quoka:n=48,budget=512 or fraction=0.25,sinks=4,recent=128,every=64,smooth=3,\n"
         "  score=standardised|cosine|dot,reduce=max|mean,dense_layers=0/7/8 (which read everything)\n"
         "quoka:queries=lowest_cosine|group_lowest_cosine|farthest_point|random|newest|all,n=16,\n"
         "  rows=group_means|own,seed=0, then as above but for budget=1024,sinks=0,recent=0,every=0,\n"
         "  smooth=1,score=cosine (lowest_cosine is the paper's rule)\n"
         "sink_window:budget=1024 or fraction=0.25,sinks=4\n"
         "What the cache keeps (all: budget=1024,compaction=refill|stable,share=off|layers, the latter:\n"
         "  the same tokens in all layers and heads):\n"
         "standard: fast_caote(keydiff) smoothed over 5, the first 4 and newest quarter protected, share=layers\n"
         "keydiff:anchor=unit_mean|mean|median|pairwise,sinks=0,recent=0\n"
         "h2o, tova:sinks=0,recent=0\n"
         "snapkv:window=32,pool=5,sinks=0,recent=0\n"
         "caote(BASE):joint=off|on,smooth=1, fast_caote(BASE):smooth=1: BASE is one of these four, its\n"
         "  parameters too\n"
         "evict(sink_window):sinks=4\n"
         "evict(random):seed=0\n"
         "Which FFN neurons a chunk computes (all: keep=0.5,schedule=uniform|attention, or\n"
         "  keep_for_loss=NATS that layers may lose in all, compensate=off there; decode=dense|sparse):\n"
         "fastforward, calibrated_set:compensate=on|off\n"
         "oracle, static_set\n"
         "ffn(random):seed=0")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_flag("--show", line.show, "without --text: print a shortened prompt, a question and each method's answer");
  show_defaults(app);
}

CLI::App* add_tuning(CLI::App& app, tuning_line& line) {
  CLI::App* const command = app.add_subcommand(
      "tune", "tries QUOKA's budgets and numbers of queries on a model and names the quickest that loses little");
  add_workload(*command, line);
  const CLI::Range counts(std::int64_t{1}, most_tokens);
  command->add_option("--budgets", line.tuning.budgets, "past keys that every 64 rows read")
      ->delimiter(',')
      ->check(counts);
  command->add_option("--queries", line.tuning.queries, "queries that score the keys")->delimiter(',')->check(counts);
  command->add_option("--share", line.tuning.share, "of dense attention's right answers, to be kept")
      ->check(CLI::Range(0.0, 1.0));
  show_defaults(*command);
  return command;
}

CLI::App* add_reading(CLI::App& app, reading_line& line) {
  CLI::App* const command =
      app.add_subcommand("read", "a real model reads a text, answers, and shows what each method costs");
  reading_settings& settings = line.settings;
  const CLI::Range counts(std::int64_t{1}, most_tokens);
  command
      ->add_option("--model", line.model,
                   "a .gguf of Llama's, Qwen2's, Qwen3's or Gemma 3's architecture, or such a model's directory")
      ->required();
  command->add_option("--text", line.text, "a file, of which the first tokens are read")->required();
  command->add_option("--question", settings.question,
                      "what comes behind the text; in a model's own form of conversations, where its file has one.\n"
                      "Without it a fact is hidden in the text and asked for");
  command->add_option("--seed", settings.seed, "chooses that fact and its place")->check(CLI::NonNegativeNumber);
  command->add_flag("--plain", line.plain, "the model goes on with text and question as with any text");
  command->add_option("--context", settings.tokens, "tokens of text and question")->check(counts);
  command->add_option("--generate", settings.generate, "tokens of the answer")->check(counts);
  command->add_option("--chunk", settings.chunk, "tokens prefilled at a time")->check(counts);
  command->add_option("--threads", line.threads, "default: one per core")->check(CLI::Range(1, 1024));
  command->add_option("--kv", line.kv, "element type of the KV cache")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "q8_0"}));
  command
      ->add_option("--method", line.methods, "repeats; default: dense and QUOKA by our rule; as `needle --help` says")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  show_defaults(*command);
  return command;
}

CLI::App* add_talking(CLI::App& app, talking_line& line) {
  CLI::App* const command =
      app.add_subcommand("talk", "a conversation with a real model: a turn for each line of the standard input");
  talking_settings& settings = line.settings;
  const CLI::Range counts(std::int64_t{1}, most_tokens);
  command->add_option("--model", line.model, "a model that was trained on conversations")->required();
  command->add_option("--text", line.text, "a file that stands in front of the first turn");
  command
      ->add_option("--context", settings.tokens,
                   "most tokens of all turns, held or not; 0 = the positions that the model was trained on")
      ->check(CLI::Range(std::int64_t{0}, most_tokens));
  command->add_option("--generate", settings.answer, "most tokens of an answer")->check(counts);
  command->add_option("--chunk", settings.chunk, "tokens prefilled at a time")->check(counts);
  command->add_option("--threads", line.threads, "default: one per core")->check(CLI::Range(1, 1024));
  command->add_option("--kv", line.kv, "element type of the KV cache")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "q8_0"}));
  command
      ->add_option(
          "--method", line.method,
          "as `needle --help` says: with standard:budget=1024 the cache holds no more tokens than that and a chunk")
      ->capture_default_str();
  show_defaults(*command);
  return command;
}

skim::element element_named(const std::string& name) {
  for (const skim::element type : {skim::element::f32, skim::element::f16, skim::element::q8_0}) {
    if (name == skim::to_string(type)) return type;
  }
  return skim::element::bf16;
}

/// A file's name alone: where it lies is nobody's business.
std::string last_name(const std::string& path) {
  const std::filesystem::path all = std::filesystem::path(path).lexically_normal();
  return (all.has_filename() ? all : all.parent_path()).filename().string();
}

/// Tells one text from another: FNV-1a of its bytes.
std::uint64_t hash_of(const std::string& text) {
  std::uint64_t hash = 14695981039346656037u;
  for (const char byte : text) hash = (hash ^ static_cast<unsigned char>(byte)) * 1099511628211u;
  return hash;
}

/// Of a .gguf; null of a directory.
nlohmann::json bytes_of_model(const std::string& name) {
  std::error_code code;
  if (!std::filesystem::is_regular_file(name, code)) return nullptr;
  return std::filesystem::file_size(name);
}

nlohmann::json settings_json(const workload_line& line) {
  const evaluation_settings& s = line.settings;
  const bool real = !line.text.empty();
  return {{"model", last_name(line.model)},
          {"model_bytes", bytes_of_model(line.model)},
          {"text", real ? nlohmann::json(last_name(line.text)) : nlohmann::json()},
          {"text_hash", real ? nlohmann::json(hash_of(text_in(line.text))) : nlohmann::json()},
          {"context", s.shape.tokens},
          {"judged", real ? nlohmann::json(line.judged) : nlohmann::json()},
          {"prompts", s.prompts},
          {"questions", s.shape.questions},
          {"needles", s.shape.needles},
          {"chunk", s.chunk},
          {"seed", s.seed},
          {"generate", s.generate},
          {"mass_prompts", s.mass_prompts},
          {"threads", line.threads},
          {"timed", s.timed},
          {"kv", line.kv}};
}

/// Says so where tokens stand at positions that the model was not trained on.
void note_positions(const opened_model& opened, std::int64_t tokens) {
  const std::int64_t trained = opened.weights.config.trained_positions;
  if (trained > 0 && tokens > trained) {
    std::cerr << "needle: " << tokens << " tokens reach beyond the " << trained
              << " positions that the model was trained on: expect nonsense there\n";
  }
}

/// The prompts that were asked for, one after another. Throws `error` where the model or the shape do not go with them.
prompt_maker prompts_for(const workload_line& line, const opened_model& opened) {
  const prompt_shape shape = line.settings.shape;
  if (line.text.empty()) {
    if (opened.words) throw error("a model of real text needs --text FILE, prose that is longer than a prompt");
    check(shape);
    if (opened.weights.config.vocabulary < vocabulary::size) {
      throw error("the model knows " + std::to_string(opened.weights.config.vocabulary) +
                  " tokens, needle prompts use " + std::to_string(vocabulary::size));
    }
    return [shape, source = prompt_source(line.settings.seed)]() mutable { return source.next(shape); };
  }
  if (!opened.words) throw error("--text needs a model with a vocabulary, '" + line.model + "' has none");
  check_prose(shape);
  prose from = prose_of(*opened.words, text_in(line.text));
  const double judged_from = 1 - line.judged;
  make_prompt(from, shape, judged_from, 0);  // what cannot be made is refused now
  const std::int64_t first = static_cast<std::int64_t>(line.settings.seed - 1) * 1000;
  return [from = std::move(from), shape, judged_from, number = first]() mutable {
    return make_prompt(from, shape, judged_from, number++);
  };
}

/// Replaces a file as a whole, so that one who stops the program keeps what was there; a pipe is written to.
void write_json(const std::string& path, const nlohmann::json& written) {
  const auto write = [&](const std::filesystem::path& to) {
    std::ofstream json(to);
    json << written.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
    return std::string(json.flush() ? "" : "cannot be written");
  };
  std::error_code code;
  if (!std::filesystem::exists(path, code) || std::filesystem::is_regular_file(path, code)) {
    replace_file(path, write);
  } else if (const std::string problem = write(path); !problem.empty()) {
    throw error(path + ": " + problem);
  }
}

/// Evaluates and writes what was asked for: `before` may use the model first, `after` sees the results.
template <class Before, class After>
void run(workload_line line, const std::vector<method>& methods, const Before& before, const After& after) {
  line.settings.kv_type = element_named(line.kv);
  line.settings.shape.needles = line.needles.value_or(line.text.empty() ? 16 : 8);
  if (line.text.empty()) check(line.settings.shape);
  if (!(line.judged >= 0)) throw error("--judged is not a number, expected 0 to 1");
  if (!line.json.empty() && !line.resume) check_replaceable(line.json);
  const nlohmann::json settings = settings_json(line);
  std::vector<evaluation_result> results;
  std::vector<evaluation_result> others;  // that were resumed, and are kept
  for (const method& each : methods) results.push_back({each.text, {}});
  if (line.resume) {
    for (evaluation_result& had : results_in(line.json, settings)) {
      const std::size_t prompts = had.prompts.size();
      if (prompts > static_cast<std::size_t>(line.settings.prompts)) {
        throw error(line.json + ": holds " + std::to_string(prompts) + " prompts of " + had.method + ", --prompts is " +
                    std::to_string(line.settings.prompts) + ", expected no fewer");
      }
      const auto same = std::find_if(results.begin(), results.end(),
                                     [&](const evaluation_result& each) { return each.method == had.method; });
      (same != results.end() ? *same : others.emplace_back()) = std::move(had);
    }
  }
  const opened_model opened = open_model(line.model);
  const prompt_maker prompts = prompts_for(line, opened);
  note_positions(opened, line.settings.shape.tokens + line.settings.generate);
  if (!line.json.empty() && !can_write(line.json)) throw error(line.json + ": cannot be written");

  const tbb::global_control lift(tbb::global_control::max_allowed_parallelism, static_cast<std::size_t>(line.threads));
  tbb::task_arena arena(line.threads);
  const executor threads(arena);
  progress_line progress(std::cerr, isatty(STDERR_FILENO) != 0, "prefill");
  before(opened.weights, line.settings, threads, progress);
  const auto all_known = [&others](std::vector<evaluation_result> all) {
    all.insert(all.end(), others.begin(), others.end());
    all.erase(std::remove_if(all.begin(), all.end(), [](const auto& each) { return each.prompts.empty(); }), all.end());
    return all;
  };
  const auto save = [&](const std::vector<evaluation_result>& so_far) {
    write_json(line.json, to_json(settings, all_known(so_far), true));
  };
  results = evaluate(opened.weights, methods, prompts, line.settings, std::move(results), threads, progress,
                     line.resume ? save : result_listener());
  print_table(std::cout, results);
  nlohmann::json written = to_json(settings, all_known(results), line.resume);
  after(results, written);
  if (!line.json.empty()) write_json(line.json, written);
}

void run(const evaluation_line& line) {
  const std::vector<method> methods = parse_methods(line.methods);
  if (line.show && !line.text.empty())
    throw error("--show has questions of the made-up language alone, without --text");
  run(
      line, methods,
      [&](const model& weights, const evaluation_settings& settings, const executor& threads, progress_line& progress) {
        if (line.show) print_question(std::cout, ask(weights, methods, settings, threads, progress));
      },
      [](const auto&, const auto&) {});
}

void run(const tuning_line& line) {
  if (!line.settings.timed) throw error("tune looks for the quickest method: --untimed leaves nothing to compare");
  const double share = line.tuning.share;
  run(
      line, tuning_methods(line.tuning), [](const auto&...) {},
      [&](const std::vector<evaluation_result>& results, nlohmann::json& written) {
        const evaluation_result* const found = cheapest(results, share);
        print_proposal(std::cout, results, found, share);
        written["share"] = share;
        written["proposal"] = found ? nlohmann::json(found->method) : nlohmann::json();
      });
}

/// Prompts to calibrate with. Sets what `line` leaves open, and how many prompts there are where the text is short.
token_source calibration_source(calibration_line& line, const opened_model& opened, nlohmann::json& settings) {
  calibration_settings& s = line.settings;
  s.shape.tokens = line.context.value_or(line.texts.empty() ? s.shape.tokens : 2048);
  settings["context"] = s.shape.tokens;
  settings["model_bytes"] = bytes_of_model(line.model);
  settings["texts"] = nullptr;
  if (line.texts.empty()) {
    if (opened.words) throw error("a model of real text needs --text FILE, some hundred thousand words like its own");
    check(s.shape);
    settings["prompts"] = s.prompts;
    return [shape = s.shape, source = prompt_source(s.seed)]() mutable {
      std::vector<std::int32_t> tokens = source.next(shape).tokens;
      tokens.pop_back();  // an answer
      return tokens;
    };
  }
  if (!opened.words) throw error("--text needs a model with a vocabulary, '" + line.model + "' has none");
  std::vector<std::vector<std::int32_t>> texts;
  std::int64_t all = 0;
  for (const std::string& path : line.texts) {
    const std::string text = text_in(path);
    settings["texts"].push_back(hash_of(text));
    texts.push_back(opened.words->encode(text));
    all += static_cast<std::int64_t>(texts.back().size());
  }
  std::vector<std::int32_t> begin;
  if (opened.words->begin() >= 0) begin.push_back(opened.words->begin());
  text_windows windows(std::move(texts), begin, s.shape.tokens, s.seed);
  s.prompts = std::min(s.prompts, windows.count() - s.loss_prompts);
  if (s.prompts < 2) {
    throw error("the text has " + std::to_string(all) + " tokens, expected at least " +
                std::to_string(2 + s.loss_prompts) + " windows of " + std::to_string(s.shape.tokens));
  }
  settings["prompts"] = s.prompts;
  return [windows = std::move(windows), number = std::int64_t{0}]() mutable { return windows.window(number++); };
}

void run(calibration_line line) {
  calibration_settings& s = line.settings;
  const std::filesystem::path path = line.out.empty() ? fitted_path_of(line.model) : std::filesystem::path(line.out);
  const std::filesystem::path part = path.string() + ".part";
  std::error_code code;
  if (std::filesystem::exists(path, code) && !std::filesystem::is_regular_file(path, code)) {
    throw error(path.string() + ": is there and is no file, expected a file to write or to replace");
  }
  if (std::filesystem::exists(path, code) && std::filesystem::file_size(path, code) > 0 &&
      !skim::is_fastforward_file(path)) {
    throw error(path.string() + ": holds no fitted parts, and is not written over: name another file, or move it away");
  }
  if (!can_write(part)) throw error(path.string() + ": cannot be written");
  if (path.has_parent_path()) s.scratch = path.parent_path();
  const opened_model opened = open_model(line.model);
  const model_config& config = opened.weights.config;
  nlohmann::json settings = {{"model", last_name(line.model)},
                             {"model_layers", config.layers},
                             {"chunk", s.chunk},
                             {"keep", s.keep},
                             {"rank", s.rank},
                             {"seed", s.seed}};
  const token_source next = calibration_source(line, opened, settings);
  check(s, config);
  calibration so_far = part_in(part, config, settings);
  const tbb::global_control lift(tbb::global_control::max_allowed_parallelism, static_cast<std::size_t>(line.threads));
  tbb::task_arena arena(line.threads);
  progress_line progress(std::cerr, isatty(STDERR_FILENO) != 0, "step");
  const calibration fitted = calibrate(opened.weights, s, next, executor(arena), progress, std::move(so_far),
                                       [&](const calibration& more) { save_part(part, more, settings); });
  print_calibration(std::cout, fitted);
  replace_file(path, [&](const std::filesystem::path& to) { return skim::save_fastforward(to, fitted.model); });
  std::filesystem::remove(part, code);
  std::cout << one_line("wrote " + path.string()) << '\n';
}

void run(reading_line line) {
  const std::vector<method> methods = parse_methods(line.methods);
  line.settings.text = text_in(line.text);
  line.settings.kv_type = element_named(line.kv);
  const opened_model opened = open_model(line.model);
  if (!opened.words) throw error("model '" + line.model + "' has no vocabulary to read a text with");
  const std::int64_t read = static_cast<std::int64_t>(opened.words->encode(line.settings.text).size());
  note_positions(opened, std::min(line.settings.tokens, read) + line.settings.generate);
  line.settings.hide_fact = !line.plain && line.settings.question.empty();
  if (!line.plain && !line.settings.question.empty() && opened.chat) {
    line.settings.chat = opened.chat;
    line.settings.question = "\n\n" + line.settings.question;
  }
  const tbb::global_control lift(tbb::global_control::max_allowed_parallelism, static_cast<std::size_t>(line.threads));
  tbb::task_arena arena(line.threads);
  print_readings(std::cout,
                 read_and_answer(opened.weights, *opened.words, methods, line.settings, executor(arena), std::cout));
}

void run(talking_line line) {
  const method how = parse_method(line.method);
  if (!line.text.empty()) line.settings.text = text_in(line.text);
  line.settings.kv_type = element_named(line.kv);
  const opened_model opened = open_model(line.model);
  const tbb::global_control lift(tbb::global_control::max_allowed_parallelism, static_cast<std::size_t>(line.threads));
  tbb::task_arena arena(line.threads);
  talk(opened, how, line.settings, executor(arena), std::cin, std::cout, std::cerr);
}

/// Says what is wrong, in one line.
int complain(const std::string& text) {
  std::cerr << one_line("needle: " + text) << '\n';
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    CLI::App app("Prefills needle-in-a-haystack prompts and shows what each method costs and saves.", "needle");
    evaluation_line line;
    add_options(app, line);
    CLI::App* const by_name = app.add_subcommand("table", "what the program does without a verb");
    add_options(*by_name, line);
    tuning_line tuning;
    const CLI::App* const tunes = add_tuning(app, tuning);
    calibration_line calibration;
    const CLI::App* const calibrating = add_calibration(app, calibration);
    reading_line reading;
    const CLI::App* const reads = add_reading(app, reading);
    talking_line talking;
    const CLI::App* const talks = add_talking(app, talking);
    try {
      app.parse(argc, argv);
    } catch (const CLI::CallForHelp& help) {
      return app.exit(help);
    }
    for (const CLI::Option* option : app.get_options()) {
      if (!app.get_subcommands().empty() && option->count() > 0) {
        throw error("options stand behind the verb: " + option->get_name() + " stands before " +
                    app.get_subcommands().front()->get_name());
      }
    }
    if (calibrating->parsed()) {
      run(calibration);
    } else if (reads->parsed()) {
      run(reading);
    } else if (talks->parsed()) {
      run(talking);
    } else if (tunes->parsed()) {
      run(tuning);
    } else {
      run(line);
    }
    if (!std::cout.flush()) return complain("the results cannot be written to standard output");
    return 0;
  } catch (const std::bad_alloc&) {
    return complain("not enough memory");
  } catch (const std::exception& problem) {
    return complain(problem.what());
  }
}
