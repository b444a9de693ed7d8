// SPDX-License-Identifier: Apache-2.0
// The command line of the benchmarks.
#include "bench.hpp"

#include <benchmark/benchmark.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

namespace {

struct settings {
  std::string filter = ".", json_path;
  std::vector<std::string> shapes, storage{"f32", "f16", "bf16", "q8_0", "int8"};
  std::vector<std::int64_t> budgets{1024};
  int threads = tbb::info::default_concurrency(), repetitions = 7;
  double min_time = 0.25;
  std::vector<std::string> rest;  // Google Benchmark's own
};

/// Parses "Hq:28/Hk:4/D:128/Tq:512/Tk:16384"; parts left out keep their defaults.
bench::shape parse_shape(const std::string& text) {
  bench::shape of;
  const std::pair<std::string, std::int64_t*> known[] = {
      {"Hq", &of.Hq}, {"Hk", &of.Hk}, {"D", &of.D}, {"Tq", &of.Tq}, {"Tk", &of.Tk}};
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, '/');) {
    const auto colon = part.find(':');
    std::int64_t* target = nullptr;
    for (const auto& [name, value] : known) {
      if (part.substr(0, colon) == name) target = value;
    }
    const std::string number = colon == std::string::npos ? "" : part.substr(colon + 1);
    const bool digits = !number.empty() && number.find_first_not_of("0123456789") == std::string::npos;
    const bool nothing = target != &of.Tk && number == "0";  // only the past may be empty
    if (!target || !digits || number.size() > 9 || nothing) {
      throw CLI::ValidationError(
          "--shape", "'" + part + "' in '" + text +
                         "' is not one of Hq:N, Hk:N, D:N, Tq:N, Tk:N joined by '/', N at least 1, of Tk 0");
    }
    *target = std::stoll(number);
  }
  return of;
}

void add_options(CLI::App& app, settings& to) {
  app.add_option("--filter", to.filter, "Rows to run, a regular expression on names; the ceilings always run");
  app.add_option("--json", to.json_path, "File for Google Benchmark's JSON with machine, compiler and flags");
  app.add_option("--shape", to.shapes,
                 "A shape of your own in place of the standard ones, such as Hq:28/Hk:4/D:128/Tq:512/Tk:16384; repeats")
      ->allow_extra_args(false);
  app.add_option(
         "--kv", to.storage,
         "Storage of keys and values, and of the FFN's weights: f32, f16, bf16, q8_0, int8; repeats (default: all)")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "q8_0", "int8"}))
      ->allow_extra_args(false);
  app.add_option("--budget", to.budgets, "Past keys that QUOKA keeps; repeats (default: 1024)")
      ->check(CLI::Range(1, 1 << 30))
      ->allow_extra_args(false);
  app.add_option("--threads", to.threads, "Threads (default: all)")
      ->check(CLI::Range(1, tbb::info::default_concurrency()));
  app.add_option("--repetitions", to.repetitions, "Repetitions of each row, whose median counts (default: 7)")
      ->check(CLI::Range(1, 1 << 30));
  app.add_option("--min-time", to.min_time, "Seconds a repetition lasts at least (default: 0.25)")
      ->check(CLI::Range(0.001, 3600.0));
  app.allow_extras();
  app.footer("Options that start with --benchmark_ go to Google Benchmark.");
}

bench::attention_rows rows_of(const settings& from) {
  bench::attention_rows rows;
  for (const std::string& text : from.shapes) rows.shapes.push_back(parse_shape(text));
  if (rows.shapes.empty()) {
    for (std::int64_t Tk = 1024; Tk <= 32768; Tk *= 2) rows.shapes.push_back({32, 8, 128, 128, Tk});
  }
  using skim::element;
  for (const element type : {element::f32, element::f16, element::bf16, element::q8_0, element::int8}) {
    const auto& wanted = from.storage;
    if (std::find(wanted.begin(), wanted.end(), skim::to_string(type)) != wanted.end()) rows.storage.push_back(type);
  }
  rows.budgets = from.budgets;
  return rows;
}

/// Hands Google Benchmark its flags; false if it does not know one.
bool initialize(const settings& from) {
  static std::vector<std::string> words;  // Google Benchmark keeps a pointer into it
  words = {"bench", "--benchmark_enable_random_interleaving=true",
           "--benchmark_repetitions=" + std::to_string(from.repetitions),
           "--benchmark_min_time=" + std::to_string(from.min_time)};
  words.insert(words.end(), from.rest.begin(), from.rest.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  int argc = static_cast<int>(argv.size());
  benchmark::Initialize(&argc, argv.data());
  return !benchmark::ReportUnrecognizedArguments(argc, argv.data());
}

/// Whether results can be written to a file, and over nothing but results: asked before the work, not after it. Keeps what is
/// there, and leaves nothing behind.
bool may_replace(const std::filesystem::path& path) {
  std::error_code code;
  const bool there = std::filesystem::exists(path, code);
  if (std::filesystem::is_regular_file(path, code) && std::filesystem::file_size(path, code) > 0) {
    std::ifstream stream(path);
    const auto held = nlohmann::ordered_json::parse(stream, nullptr, false);
    if (!held.is_object() || !held.contains("benchmarks")) return false;
  }
  const bool good = std::ofstream(path, std::ios::app).good();
  if (!there) std::filesystem::remove(path, code);
  return good;
}

int run(const settings& from) {
  if (std::isnan(from.min_time))
    throw CLI::ValidationError("--min-time", "nan is no number of seconds");  // nor out of range
  if (!from.json_path.empty() && !may_replace(from.json_path)) {
    std::cerr << from.json_path << ": cannot be written, or holds anything but results\n";
    return 2;
  }
  if (!initialize(from)) return 2;
  tbb::task_arena arena(from.threads);
  const skim::tbb_executor executor(arena);
  bench::attention_rows rows = rows_of(from);
  const bench::multiply_rates rates = bench::measure_multiply_rates(executor);
  rows.pairs_first = rates.dot_bf16 > rates.fma_f32;
  bench::add_roofline_rows(executor);
  if (const std::string complaint = bench::add_attention_rows(rows, executor); !complaint.empty()) {
    std::cerr << complaint << "\n";
    return 2;
  }
  if (from.shapes.empty()) {
    bench::add_eviction_rows(rows.storage, executor);
    bench::add_ffn_rows(rows.storage, rows.pairs_first, executor);
  }

  std::ostringstream written;
  benchmark::JSONReporter reporter;
  reporter.SetOutputStream(&written);
  const std::size_t count = benchmark::RunSpecifiedBenchmarks(&reporter, "(^roofline/)|(" + from.filter + ")");
  bench::show_progress("");
  if (count == 0) return 2;
  if (written.str().front() != '{') {  // names alone: --benchmark_list_tests
    std::cout << written.str();
    return 0;
  }
  const nlohmann::ordered_json result = bench::complete(written.str());
  bench::print_table(result);
  if (!from.json_path.empty()) {
    std::ofstream file(from.json_path);
    file << result.dump(2) << "\n";
    if (!file.flush()) {
      std::cerr << from.json_path << ": cannot be written\n";
      return 2;
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  settings chosen;
  CLI::App app("Benchmarks of skim: the machine's ceilings, attention, eviction, the FFN", "bench/run");
  add_options(app, chosen);
  try {
    app.parse(argc, argv);
    chosen.rest = app.remaining();
    return run(chosen);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const std::bad_alloc&) {
    std::cerr << "not enough memory for these shapes\n";
    return 2;
  }
}
