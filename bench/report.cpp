// SPDX-License-Identifier: Apache-2.0
// What becomes of Google Benchmark's result: the machine in its context, shares of the ceilings, a table.
#include "bench.hpp"

#include <skim/cpu/simd/compat.hpp>
#include <skim/version.hpp>

#include <unistd.h>

#include <cstdio>
#include <fstream>
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

/// The dense row that a sparse one is compared with: of the accumulate policy that is better here, whose row names none.
std::string dense_name(std::string name) {
  if (const auto method = name.find("/quoka/"); method != std::string::npos) name.replace(method, 7, "/dense/");
  for (const char* policy : {"/dot_pairs/", "/widen_fma/"}) {
    if (const auto at = name.find(policy); at != std::string::npos) name.replace(at, std::string(policy).size(), "/");
  }
  if (const auto budget = name.find("/budget:"); budget != std::string::npos) {
    name.erase(budget, name.find('/', budget + 1) - budget);
  }
  return name;
}

void print_cell(double value, const char* format) {
  if (value > 0) {
    std::printf(format, value);
  } else {
    std::printf("%10s", "");
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
  const double read = ceiling(rows, "roofline/read/", "bytes");
  for (json& entry : rows) {
    const std::string aggregate = entry.value("aggregate_name", "");
    const double flops = number(entry, "flops"), bytes = number(entry, "bytes");
    if (!starts_with(row_name(entry), "attention/") || aggregate == "stddev" || aggregate == "cv" || bytes == 0)
      continue;
    const double peak = entry.value("label", "") == "dot_pairs" ? dot : fma;
    if (peak > 0 && read > 0) entry["roof"] = flops / std::min(peak, flops / bytes * read);
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
  std::printf("%-*s%10s%10s%10s%10s%10s%10s%10s%10s%10s%10s  %s\n", static_cast<int>(width), "", "median ms",
              "spread %", "GFLOP/s", "GB/s", "roof %", "select us", "attend us", "x dense", "x read K", "NMSE",
              "accumulate");
  for (const json& entry : result["benchmarks"]) {
    const std::string name = row_name(entry);
    if (entry.value("error_occurred", false)) {
      std::printf("%-*s  %s\n", static_cast<int>(width), name.c_str(), entry.value("error_message", "").c_str());
    }
    if (!is_median(entry)) continue;
    std::printf("%-*s", static_cast<int>(width), name.c_str());
    print_cell(time[name], "%10.3f");
    print_cell(spread[name], "%10.1f");
    print_cell(number(entry, "flops") / 1e9, "%10.1f");
    print_cell(number(entry, "bytes") / 1e9, "%10.1f");
    print_cell(100 * number(entry, "roof"), "%10.1f");
    print_cell(number(entry, "select_us"), "%10.1f");
    print_cell(number(entry, "attend_us"), "%10.1f");
    const auto dense = time.find(dense_name(name));
    print_cell(dense != time.end() && dense->first != name ? dense->second / time[name] : 0, "%10.2f");
    print_cell(number(entry, "reads_of_k"), "%10.2f");
    print_cell(number(entry, "nmse"), "%10.1e");
    std::printf("  %s\n", entry.value("label", "").c_str());
  }
}

}  // namespace bench
