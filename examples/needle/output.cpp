// SPDX-License-Identifier: Apache-2.0
#include "output.hpp"

#include "error.hpp"

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

double speedup(const evaluation_result& dense, const evaluation_result& result) {
  return dense.median_of(&prompt_result::ttft_ms) / result.median_of(&prompt_result::ttft_ms);
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

nlohmann::json known(double value) {
  return std::isnan(value) ? nlohmann::json() : nlohmann::json(value);
}

nlohmann::json known(const std::vector<double>& values) {
  nlohmann::json list = nlohmann::json::array();
  for (const double each : values) list.push_back(known(each));
  return values.empty() ? nlohmann::json() : list;
}

double number_or_nan(const nlohmann::json& value) {
  return value.is_null() ? std::nan("") : value.get<double>();
}

/// The fields of a prompt's result: both ways from one list.
template <class Field>
void each_field(prompt_result& of, const Field& field) {
  field("answers", of.answers);
  field("right", of.right);
  field("judged", of.judged);
  field("nll", of.nll);
  field("ttft_ms", of.ttft_ms);
  field("decode_ms_per_token", of.decode_ms_per_token);
  field("select_ms", of.select_ms);
  field("attention_ms", of.attention_ms);
  field("ffn_ms", of.ffn_ms);
  field("evict_ms", of.evict_ms);
  field("kv_tokens_read", of.kv_tokens_read);
  field("kv_bytes_held", of.kv_bytes_held);
  field("mass", of.mass);
  field("mass_of_worst", of.mass_of_worst);
  field("mass_of_layer", of.mass_of_layer);
}

struct written_field {
  nlohmann::json& to;
  void operator()(const char* name, std::int64_t value) const { to[name] = value; }
  void operator()(const char* name, double value) const { to[name] = known(value); }
  void operator()(const char* name, const std::vector<double>& values) const { to[name] = known(values); }
};

struct read_field {
  const nlohmann::json& from;
  void operator()(const char* name, std::int64_t& value) const { value = from.at(name); }
  void operator()(const char* name, double& value) const { value = number_or_nan(from.at(name)); }
  void operator()(const char* name, std::vector<double>& values) const {
    for (const nlohmann::json& each : from.at(name)) values.push_back(number_or_nan(each));
  }
};

nlohmann::json to_json(prompt_result result) {
  nlohmann::json written;
  each_field(result, written_field{written});
  return written;
}

prompt_result prompt_from(const nlohmann::json& written) {
  prompt_result result;
  each_field(result, read_field{written});
  return result;
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
  const auto known = [](double value, int digits) {
    return std::isnan(value) ? std::string("-") : fixed(value, digits);
  };
  const bool decoded = !results.empty() && results[0].median_of(&prompt_result::decode_ms_per_token) > 0;
  std::vector<std::vector<std::string>> rows = {{"method", "accuracy", "of dense", "nll", "over dense", "mass",
                                                 "worst 5 %", "first token", "speedup", "select", "attention", "evict",
                                                 "FFN", "keys read", "KV held"}};
  if (decoded) rows[0].push_back("a token more");
  for (const evaluation_result& each : results) {
    const auto ms = [&](double prompt_result::*field, int digits) {
      const double value = each.median_of(field);
      return std::isnan(value) ? std::string("-") : fixed(value, digits) + " ms";
    };
    const bool timed = !std::isnan(each.median_of(&prompt_result::ttft_ms));
    const estimate more = dense ? nll_above(*dense, each) : estimate();
    std::string over = known(more.mean, 4);
    if (more.mean >= 0) over.insert(0, 1, '+');
    if (!std::isnan(more.error)) over += " +-" + fixed(more.error, 4);
    rows.push_back({each.method, known(each.accuracy(), 3), dense ? known(answers_of(*dense, each), 3) : "-",
                    known(each.nll(), 4), over, known(each.mean_of(&prompt_result::mass), 3),
                    known(each.mean_of(&prompt_result::mass_of_worst), 3), ms(&prompt_result::ttft_ms, 0),
                    dense && timed ? fixed(speedup(*dense, each), 2) + "x" : "-", ms(&prompt_result::select_ms, 0),
                    ms(&prompt_result::attention_ms, 0), ms(&prompt_result::evict_ms, 0), ms(&prompt_result::ffn_ms, 0),
                    fixed(each.mean_of(&prompt_result::kv_tokens_read), 0),
                    fixed(static_cast<double>(each.kv_bytes_held()) / mebibyte, 1) + " MiB"});
    if (decoded) rows.back().push_back(ms(&prompt_result::decode_ms_per_token, 2));
  }
  print_columns(out, rows);
}

void print_proposal(std::ostream& out, const std::vector<evaluation_result>& results, const evaluation_result* found,
                    double share) {
  const evaluation_result& dense = results[0];
  out << '\n';
  if (!(dense.accuracy() > 0)) {
    out << "dense attention has no right answer: these questions say nothing about this model\n";
  } else if (!found) {
    const auto best = std::max_element(results.begin() + 1, results.end(),
                                       [](const auto& a, const auto& b) { return a.accuracy() < b.accuracy(); });
    out << "none keeps " << fixed(share, 3) << " of the right answers; most, "
        << fixed(best->accuracy() / dense.accuracy(), 3) << ", are kept by " << best->method << '\n';
  } else {
    const double more = found->nll() - dense.nll();
    out << "the quickest that keeps " << fixed(share, 3) << " of the right answers: " << found->method << ", "
        << fixed(speedup(dense, *found), 2) << "x to the first token";
    if (!std::isnan(more)) out << ", nll " << (more < 0 ? "" : "+") << fixed(more, 4);
    out << '\n';
  }
}

void print_calibration(std::ostream& out, const calibration& fitted) {
  std::vector<std::vector<std::string>> rows = {{"layer", "recall", "set's", "captured", "set's", "error",
                                                 "compensated", "set's", "compensated", "oracle's", "compensated",
                                                 "importance"}};
  for (const float keep : fitted.model.loss_keep) rows[0].push_back("nats at " + fixed(static_cast<double>(keep), 2));
  for (std::size_t layer = 0; layer < fitted.layers.size(); ++layer) {
    const skim::calibrate::layer_report& each = fitted.layers[layer];
    const auto &ours = each.predictor, &set = each.calibrated_set, &oracle = each.oracle;
    rows.push_back({std::to_string(layer), fixed(ours.recall, 3), fixed(set.recall, 3), fixed(ours.captured, 3),
                    fixed(set.captured, 3), fixed(ours.error, 3), fixed(ours.compensated_error, 3), fixed(set.error, 3),
                    fixed(set.compensated_error, 3), fixed(oracle.error, 3), fixed(oracle.compensated_error, 3),
                    fixed(static_cast<double>(fitted.model.importance[layer]), 0)});
    const std::size_t levels = fitted.model.loss_keep.size();
    for (std::size_t level = 0; level < levels; ++level) {
      rows.back().push_back(fixed(static_cast<double>(fitted.model.loss[layer * levels + level]), 4));
    }
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

nlohmann::json to_json(const nlohmann::json& settings, const std::vector<evaluation_result>& results,
                       bool with_prompts) {
  const evaluation_result* const dense = find_dense(results);
  nlohmann::json rows = nlohmann::json::array();
  for (const evaluation_result& each : results) {
    const auto ms = [&](double prompt_result::*field) { return known(each.median_of(field)); };
    const double decode = each.median_of(&prompt_result::decode_ms_per_token);
    const estimate more = dense ? nll_above(*dense, each) : estimate();
    nlohmann::json written = {{"method", each.method},
                              {"accuracy", known(each.accuracy())},
                              {"accuracy_of_dense", known(dense ? answers_of(*dense, each) : std::nan(""))},
                              {"nll", known(each.nll())},
                              {"nll_over_dense", known(more.mean)},
                              {"nll_over_dense_error", known(more.error)},
                              {"mass", known(each.mean_of(&prompt_result::mass))},
                              {"mass_of_worst", known(each.mean_of(&prompt_result::mass_of_worst))},
                              {"mass_of_layer", known(each.mass_of_layer())},
                              {"ttft_ms", ms(&prompt_result::ttft_ms)},
                              {"ttft_speedup", known(dense ? speedup(*dense, each) : std::nan(""))},
                              {"select_ms", ms(&prompt_result::select_ms)},
                              {"attention_ms", ms(&prompt_result::attention_ms)},
                              {"ffn_ms", ms(&prompt_result::ffn_ms)},
                              {"evict_ms", ms(&prompt_result::evict_ms)},
                              {"decode_ms_per_token", known(decode > 0 ? decode : std::nan(""))},
                              {"kv_tokens_read", each.mean_of(&prompt_result::kv_tokens_read)},
                              {"kv_bytes_held", each.kv_bytes_held()}};
    if (with_prompts) {
      for (const prompt_result& one : each.prompts) written["prompts"].push_back(to_json(one));
    }
    rows.push_back(written);
  }
  const nlohmann::json machine = {{"cpu", cpu_name()},
                                  {"cores", std::thread::hardware_concurrency()},
                                  {"features", skim::cpu::feature_set},
                                  {"compiler", compiler()}};
  return {{"machine", machine}, {"settings", settings}, {"results", rows}};
}

std::vector<evaluation_result> results_in(const std::filesystem::path& path, const nlohmann::json& settings) {
  std::ifstream stream(path);
  if (!stream) return {};
  std::vector<evaluation_result> found;
  try {
    const nlohmann::json file = nlohmann::json::parse(stream);
    const auto but_prompts = [](nlohmann::json all) {
      all.erase("prompts");  // another number of them is no other run
      return all;
    };
    if (but_prompts(file.at("settings")) != but_prompts(settings)) {
      throw error(path.string() + ": holds results of other settings, " + file.at("settings").dump() +
                  ": name another file, or move it away");
    }
    for (const nlohmann::json& each : file.at("results")) {
      evaluation_result result;
      result.method = each.at("method");
      for (const nlohmann::json& one : each.at("prompts")) result.prompts.push_back(prompt_from(one));
      found.push_back(result);
    }
  } catch (const nlohmann::json::exception& problem) {
    throw error(path.string() + ": holds no results that --resume has written (" + problem.what() + ")");
  }
  return found;
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

void check_replaceable(const std::filesystem::path& path) {
  std::error_code code;
  if (!std::filesystem::is_regular_file(path, code) || std::filesystem::file_size(path, code) == 0) return;
  std::ifstream stream(path);
  const nlohmann::json held = nlohmann::json::parse(stream, nullptr, false);
  if (held.is_object() && held.contains("settings") && held.contains("results")) return;
  throw error(path.string() + ": holds no results, and is not written over: name another file, or move it away");
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
  if (first_ < 0) {
    first_ = done;  // what was done before does not say how long the rest takes
    start_ = last_ = now;
  }
  const double seconds = std::chrono::duration<double>(now - start_).count();
  std::string left;
  if (done > first_ && seconds > 5) {
    const double rest = seconds / static_cast<double>(done - first_) * static_cast<double>(all - done);
    left = rest < 90 ? fixed(rest, 0) + " s" : fixed(rest / 60, 0) + " min";
    left = ", about " + left + " left";
  }
  if (terminal_) {
    out_ << "\r\033[K";
    if (done < all) out_ << unit_ << " " << done + 1 << " of " << all << ": " << next << left;
    out_ << std::flush;
    return;
  }
  constexpr std::chrono::seconds interval(15);
  if (now - last_ < interval || done == all) return;
  last_ = now;
  out_ << "needle: " << done << " of " << all << " " << unit_ << "s after " << fixed(seconds, 0) << " s" << left
       << std::endl;
}

}  // namespace needle
