// SPDX-License-Identifier: Apache-2.0
#include "output.hpp"

#include <skim/cpu/features.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iomanip>
#include <ostream>
#include <sstream>
#include <thread>

namespace needle {
namespace {

std::string fixed(double value, int digits) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(digits) << value;
  return text.str();
}

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const std::size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

/// Rows of cells in columns, the first to the left.
void print_columns(std::ostream& out, const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths(rows[0].size());
  for (const auto& cells : rows) {
    for (std::size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], cells[i].size());
  }
  for (const auto& cells : rows) {
    out << std::left << std::setw(static_cast<int>(widths[0])) << cells[0] << std::right;
    for (std::size_t i = 1; i < cells.size(); ++i) out << "  " << std::setw(static_cast<int>(widths[i])) << cells[i];
    out << '\n';
  }
}

std::string compiler() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
  return std::string("gcc ") + __VERSION__;
#else
  return "unknown";
#endif
}

unsigned byte_at(const std::string& text, std::size_t i) {
  return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
}

/// Of the character that begins at `i`; 0 where that is no UTF-8.
std::size_t character_bytes(const std::string& text, std::size_t i) {
  const unsigned first = byte_at(text, i);
  if (first < 0x80) return 1;
  const std::size_t bytes = first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
  for (std::size_t k = 1; k < bytes; ++k) {
    if ((byte_at(text, i + k) & 0xc0) != 0x80) return 0;
  }
  return bytes;
}

}  // namespace

const evaluation_result* find_dense(const std::vector<evaluation_result>& results) {
  const auto at = std::find_if(results.begin(), results.end(),
                               [](const evaluation_result& each) { return each.method == "dense"; });
  return at == results.end() ? nullptr : &*at;
}

void print_table(std::ostream& out, const std::vector<evaluation_result>& results) {
  const evaluation_result* const dense = find_dense(results);
  constexpr double mebibyte = 1024 * 1024;
  const auto mass = [](double share) { return std::isnan(share) ? std::string("-") : fixed(share, 3); };
  const bool decoded = !results.empty() && results[0].decode_ms_per_token > 0;
  std::vector<std::vector<std::string>> rows = {{"method", "accuracy", "nll", "mass", "worst 5 %", "first token",
                                                 "speedup", "select", "attention", "evict", "FFN", "keys read",
                                                 "KV held"}};
  if (decoded) rows[0].push_back("a token more");
  for (const evaluation_result& each : results) {
    rows.push_back({each.method, fixed(each.accuracy, 3), fixed(each.nll, 4), mass(each.mass), mass(each.mass_of_worst),
                    fixed(each.ttft_ms, 0) + " ms", dense ? fixed(dense->ttft_ms / each.ttft_ms, 2) + "x" : "-",
                    fixed(each.select_ms, 0) + " ms", fixed(each.attention_ms, 0) + " ms",
                    fixed(each.evict_ms, 0) + " ms", fixed(each.ffn_ms, 0) + " ms", fixed(each.kv_tokens_read, 0),
                    fixed(static_cast<double>(each.kv_bytes_held) / mebibyte, 1) + " MiB"});
    if (decoded) rows.back().push_back(fixed(each.decode_ms_per_token, 2) + " ms");
  }
  print_columns(out, rows);
}

void print_proposal(std::ostream& out, const std::vector<evaluation_result>& results, const evaluation_result* found,
                    double share) {
  const evaluation_result& dense = results[0];
  out << '\n';
  if (dense.accuracy == 0) {
    out << "dense attention has no right answer: these questions say nothing about this model\n";
  } else if (!found) {
    const auto best = std::max_element(results.begin() + 1, results.end(),
                                       [](const auto& a, const auto& b) { return a.accuracy < b.accuracy; });
    out << "none keeps " << fixed(share, 3) << " of the right answers; most, "
        << fixed(best->accuracy / dense.accuracy, 3) << ", are kept by " << best->method << '\n';
  } else {
    out << "the quickest that keeps " << fixed(share, 3) << " of the right answers: " << found->method << ", "
        << fixed(dense.ttft_ms / found->ttft_ms, 2) << "x to the first token, nll "
        << (found->nll < dense.nll ? "" : "+") << fixed(found->nll - dense.nll, 4) << '\n';
  }
}

void print_calibration(std::ostream& out, const calibration& fitted) {
  std::vector<std::vector<std::string>> rows = {{"layer", "recall", "set's", "captured", "set's", "error",
                                                 "compensated", "set's", "compensated", "oracle's", "compensated",
                                                 "importance"}};
  for (std::size_t layer = 0; layer < fitted.layers.size(); ++layer) {
    const skim::calibrate::layer_report& each = fitted.layers[layer];
    const auto &ours = each.predictor, &set = each.calibrated_set, &oracle = each.oracle;
    rows.push_back({std::to_string(layer), fixed(ours.recall, 3), fixed(set.recall, 3), fixed(ours.captured, 3),
                    fixed(set.captured, 3), fixed(ours.error, 3), fixed(ours.compensated_error, 3), fixed(set.error, 3),
                    fixed(set.compensated_error, 3), fixed(oracle.error, 3), fixed(oracle.compensated_error, 3),
                    fixed(static_cast<double>(fitted.model.importance[layer]), 0)});
  }
  print_columns(out, rows);
}

void print_question(std::ostream& out, const shown_question& shown) {
  out << shown.prompt << "\n\n" << shown.question << " ...\n";
  std::size_t width = sizeof "right answer" - 1;
  for (const shown_answer& each : shown.answers) width = std::max(width, each.method.size());
  out << std::left << std::setw(static_cast<int>(width)) << "right answer"
      << "  " << shown.answer << '\n';
  for (const shown_answer& each : shown.answers) {
    out << std::setw(static_cast<int>(width)) << each.method << "  " << each.words << (each.right ? "" : "  (wrong)")
        << '\n';
  }
  out << '\n';
}

nlohmann::json to_json(const nlohmann::json& settings, const std::vector<evaluation_result>& results) {
  const evaluation_result* const dense = find_dense(results);
  nlohmann::json rows = nlohmann::json::array();
  const auto known = [](double share) { return std::isnan(share) ? nlohmann::json() : nlohmann::json(share); };
  for (const evaluation_result& each : results) {
    rows.push_back({{"method", each.method},
                    {"accuracy", each.accuracy},
                    {"nll", each.nll},
                    {"mass", known(each.mass)},
                    {"mass_of_worst", known(each.mass_of_worst)},
                    {"ttft_ms", each.ttft_ms},
                    {"ttft_speedup", dense ? nlohmann::json(dense->ttft_ms / each.ttft_ms) : nlohmann::json()},
                    {"select_ms", each.select_ms},
                    {"attention_ms", each.attention_ms},
                    {"ffn_ms", each.ffn_ms},
                    {"evict_ms", each.evict_ms},
                    {"decode_ms_per_token",
                     each.decode_ms_per_token > 0 ? nlohmann::json(each.decode_ms_per_token) : nlohmann::json()},
                    {"kv_tokens_read", each.kv_tokens_read},
                    {"kv_bytes_held", each.kv_bytes_held}});
  }
  const nlohmann::json machine = {{"cpu", cpu_name()},
                                  {"cores", std::thread::hardware_concurrency()},
                                  {"features", skim::cpu::feature_set},
                                  {"compiler", compiler()}};
  return {{"machine", machine}, {"settings", settings}, {"results", rows}};
}

bool can_write(const std::filesystem::path& path) {
  std::error_code code;
  const std::filesystem::file_status before = std::filesystem::status(path, code);
  const bool there = std::filesystem::exists(before);
  if (there && !std::filesystem::is_regular_file(before)) return !std::filesystem::is_directory(before);  // a pipe
  const bool good = std::ofstream(path, std::ios::app).good();
  if (!there) std::filesystem::remove(path, code);
  return good;
}

std::string one_line(std::string text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::size_t bytes = character_bytes(text, i);
    const unsigned first = byte_at(text, i), second = byte_at(text, i + 1);
    const bool control = first < ' ' || first == 0x7f || (first == 0xc2 && second < 0xa0);  // U+0080 to U+009F
    if (bytes > 0 && !control) {
      i += bytes - 1;
    } else {  // or no UTF-8, and perhaps a terminal's command in one byte
      text.replace(i, std::max<std::size_t>(bytes, 1), first == '\n' ? " " : "?");
    }
  }
  return text;
}

progress_line::progress_line(std::ostream& out, bool terminal, const char* unit)
    : out_(out), terminal_(terminal), unit_(unit) {}

void progress_line::operator()(std::int64_t done, std::int64_t all, const std::string& next) {
  const clock::time_point now = clock::now();
  if (terminal_) {
    out_ << "\r\033[K";
    if (done < all) out_ << unit_ << " " << done + 1 << " of " << all << ": " << next;
    out_ << std::flush;
    return;
  }
  constexpr std::chrono::seconds interval(15);
  if (now - last_ < interval || done == all) return;
  last_ = now;
  out_ << "needle: " << done << " of " << all << " " << unit_ << "s after "
       << std::chrono::duration_cast<std::chrono::seconds>(now - start_).count() << " s" << std::endl;
}

}  // namespace needle
