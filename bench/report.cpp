// SPDX-License-Identifier: Apache-2.0
// What becomes of Google Benchmark's result: the machine in its context, shares of the ceilings, a table.
#include "bench.hpp"

#include <skim/cpu/features.hpp>
#include <skim/version.hpp>

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <regex>

namespace bench {
namespace {

using json = nlohmann::ordered_json;

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

std::string compiler() {
#if defined(__clang__)
  return std::string("Clang ") + __clang_version__;
#elif defined(__GNUC__)
  return std::string("GCC ") + __VERSION__;
#else
  return "unknown";
#endif
}

std::string version(int major, int minor, int patch) {
  return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
}

/// Of QUOKA's selection and attention, in their order.
constexpr const char* stages[] = {"pick", "score", "top_k", "attend"};

/// A number of a row; 0 where there is none, or none that JSON has a word for.
double number(const json& entry, const char* key) {
  const auto at = entry.find(key);
  return at != entry.end() && at->is_number() ? at->get<double>() : 0;
}

/// The row's median, or its only repetition.
bool is_median(const json& entry) {
  return entry.value("aggregate_name", "") == "median" ||
         (entry.value("run_type", "") == "iteration" && entry.value("repetitions", 1) == 1);
}

/// "attention/dense/..." without what Google Benchmark adds.
std::string row_name(const json& entry) {
  std::string name = entry.value("run_name", "");
  const std::string added = "/real_time";
  if (name.size() > added.size() && name.compare(name.size() - added.size(), added.size(), added) == 0) {
    name.resize(name.size() - added.size());
  }
  return name;
}

bool starts_with(const std::string& text, const char* start) {
  return text.rfind(start, 0) == 0;
}

double ceiling(const json& rows, const char* kind, const char* counter) {
  for (const json& entry : rows) {
    if (is_median(entry) && starts_with(row_name(entry), kind)) return number(entry, counter);
  }
  return 0;
}

double median_time(const json& rows, const std::string& name) {
  for (const json& entry : rows) {
    if (is_median(entry) && row_name(entry) == name) return number(entry, "real_time");
  }
  return 0;
}

/// `name` with `from` replaced, if it is there.
std::string replaced(std::string name, const std::string& from, const std::string& to) {
  if (const auto at = name.find(from); at != std::string::npos) name.replace(at, from.size(), to);
  return name;
}

/// `name` without its part that starts with `key`, such as "/budget:".
std::string without(std::string name, const std::string& key) {
  if (const auto at = name.find(key); at != std::string::npos) name.erase(at, name.find('/', at + 1) - at);
  return name;
}

/// The dense row that a sparse one is compared with: of the accumulate policy that is better here, whose row names none.
std::string dense_name(std::string name) {
  for (const char* method : {"/quoka/", "/quoka_64/", "/quoka_32/", "/quoka_paper/", "/fastforward/"})
    name = replaced(name, method, "/dense/");
  for (const char* policy : {"/dot_pairs/", "/widen_fma/"}) name = replaced(name, policy, "/");
  return without(without(name, "/budget:"), "/keep:");
}

/// The row of another library's FFN that one of ours is compared with.
std::string peer_name(const std::string& name, const std::string& peer) {
  if (!starts_with(name, "ffn/")) return "";
  return "peer/" + peer + "/" + replaced(dense_name(name), "ffn/dense/", "ffn/");
}

/// 10 of "%10.3f".
int cell_width(const char* format) {
  return std::atoi(format + 1);
}

void print_cell(double value, const char* format) {
  if (value > 0) {
    std::printf(format, value);
  } else {
    std::printf("%*s", cell_width(format), "");
  }
}

}  // namespace

void show_progress(const std::string& row) {
  if (isatty(STDERR_FILENO)) std::fprintf(stderr, "\r\033[K%s", row.c_str());
}

json complete(const std::string& written) {
  // The coefficient of variation of a counter that stays 0 is NaN, for which JSON has no word.
  json done = json::parse(std::regex_replace(written, std::regex(": -?(nan|inf|NaN|Infinity)"), ": null"));
  json& context = done["context"];
  for (const char* personal : {"host_name", "executable"}) context.erase(personal);
  context["machine"] = processor();
  context["features"] = skim::cpu::feature_set;
  context["compiler"] = compiler();
  context["flags"] = SKIM_BENCH_FLAGS;
  context["xsimd"] = version(XSIMD_VERSION_MAJOR, XSIMD_VERSION_MINOR, XSIMD_VERSION_PATCH);
  context["skim"] = version(SKIM_VERSION_MAJOR, SKIM_VERSION_MINOR, SKIM_VERSION_PATCH);

  json& rows = done["benchmarks"];
  std::stable_sort(rows.begin(), rows.end(), [](const json& a, const json& b) {  // interleaving reports in any order
    return a.value("family_index", 0) < b.value("family_index", 0);
  });
  const double fma = ceiling(rows, "roofline/fma_f32/", "flops"), dot = ceiling(rows, "roofline/dot_bf16/", "flops");
  const double amx = ceiling(rows, "roofline/amx_bf16/", "flops");
  const double read = ceiling(rows, "roofline/read/", "bytes");
  for (json& entry : rows) {
    const std::string aggregate = entry.value("aggregate_name", "");
    const double flops = number(entry, "flops"), bytes = number(entry, "bytes");
    const std::string name = row_name(entry);
    if (!starts_with(name, "attention/") && !starts_with(name, "ffn/")) continue;
    if (aggregate == "stddev" || aggregate == "cv" || bytes == 0) continue;
    const std::string label = entry.value("label", "");
    const double peak = label == "amx" ? amx : label == "dot_pairs" ? dot : fma;
    if (!(peak > 0 && read > 0)) continue;
    entry["roof"] = flops / std::min(peak, flops / bytes * read);
    for (const char* const stage : stages) {
      const std::string key = stage;
      if (!entry.contains(key + "_flops")) continue;
      const double rate = number(entry, (key + "_pairs").c_str()) > 0 ? dot : peak;
      entry[key + "_floor_us"] = 1e6 * std::max(number(entry, (key + "_flops").c_str()) / rate,
                                                number(entry, (key + "_bytes").c_str()) / read);
    }
  }
  for (json& entry : rows) {
    const std::string name = row_name(entry), aggregate = entry.value("aggregate_name", "");
    const auto method = name.find('/', std::string("eviction/").size());
    if (!starts_with(name, "eviction/") || aggregate == "stddev" || aggregate == "cv") continue;
    const std::string base = "eviction/read_k" + name.substr(method);
    if (const double read_k = median_time(rows, base); read_k > 0) {
      entry["reads_of_k"] = number(entry, "real_time") / read_k;
    }
  }
  return done;
}

void print_table(const json& result) {
  std::map<std::string, double> time, spread;
  for (const json& entry : result["benchmarks"]) {
    if (is_median(entry)) time[row_name(entry)] = number(entry, "real_time");
    if (entry.value("aggregate_name", "") == "cv") spread[row_name(entry)] = 100 * number(entry, "real_time");
  }
  std::size_t width = 0;
  for (const auto& [name, value] : time) width = std::max(width, name.size());
  const auto times_faster_than = [&](const std::string& other, const std::string& name) {
    const auto at = time.find(other);
    return at != time.end() && other != name ? at->second / time[name] : 0;
  };
  const auto beside = [&](const char* peer) {
    return
        [&, peer](const json& entry) { return times_faster_than(peer_name(row_name(entry), peer), row_name(entry)); };
  };
  const auto counter = [](const char* key, double unit) {
    return [key, unit](const json& entry) { return number(entry, key) * unit; };
  };
  struct column {
    const char *title, *format;
    std::function<double(const json&)> value;  // 0: an empty cell
  };
  std::vector<column> columns{
      {"median ms", "%10.3f", counter("real_time", 1)},
      {"spread %", "%10.1f", [&](const json& entry) { return spread[row_name(entry)]; }},
      {"GFLOP/s", "%10.1f", counter("flops", 1e-9)},
      {"GB/s", "%10.1f", counter("bytes", 1e-9)},
      {"roof %", "%10.1f", counter("roof", 100)},
      {"select us", "%10.1f", counter("select_us", 1)},
      {"pick us", "%10.1f", counter("pick_us", 1)},
      {"floor", "%8.1f", counter("pick_floor_us", 1)},
      {"score us", "%10.1f", counter("score_us", 1)},
      {"floor", "%8.1f", counter("score_floor_us", 1)},
      {"top-k us", "%10.1f", counter("top_k_us", 1)},
      {"floor", "%8.1f", counter("top_k_floor_us", 1)},
      {"attend us", "%10.1f", counter("attend_us", 1)},
      {"floor", "%8.1f", counter("attend_floor_us", 1)},
      {"comp. us", "%10.1f", counter("compute_us", 1)},
      {"compen. us", "%11.1f", counter("compensate_us", 1)},
      {"x dense", "%10.2f",
       [&](const json& entry) { return times_faster_than(dense_name(row_name(entry)), row_name(entry)); }},
      {"x oneDNN", "%10.2f", beside("onednn")},
      {"x OpenBLAS", "%11.2f", beside("openblas")},
      {"x Eigen", "%10.2f", beside("eigen")},
      {"x read K", "%10.2f", counter("reads_of_k", 1)},
      {"NMSE", "%10.1e", counter("nmse", 1)},
  };
  // Only columns that some row has something to say in.
  const auto is_empty = [&](const column& one) {
    return std::none_of(result["benchmarks"].begin(), result["benchmarks"].end(),
                        [&](const json& entry) { return is_median(entry) && one.value(entry) > 0; });
  };
  columns.erase(std::remove_if(columns.begin(), columns.end(), is_empty), columns.end());
  std::printf("%-*s", static_cast<int>(width), "");
  for (const column& one : columns) std::printf("%*s", cell_width(one.format), one.title);
  std::printf("  accumulate\n");
  for (const json& entry : result["benchmarks"]) {
    const std::string name = row_name(entry);
    if (entry.value("error_occurred", false)) {
      std::printf("%-*s  %s\n", static_cast<int>(width), name.c_str(), entry.value("error_message", "").c_str());
    }
    if (!is_median(entry)) continue;
    std::printf("%-*s", static_cast<int>(width), name.c_str());
    for (const column& one : columns) print_cell(one.value(entry), one.format);
    std::printf("  %s\n", entry.value("label", "").c_str());
  }
}

}  // namespace bench
