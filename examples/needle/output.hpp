// SPDX-License-Identifier: Apache-2.0
/// \file What the program prints and writes.
#pragma once

#include "calibration.hpp"

#include <nlohmann/json_fwd.hpp>

#include <chrono>
#include <filesystem>
#include <iosfwd>

namespace needle {

/// The first method that leaves nothing out; null if there is none.
const evaluation_result* find_dense(const std::vector<evaluation_result>& results);

void print_table(std::ostream& out, const std::vector<evaluation_result>& results);
/// Which of the sparse rows to take, `found`, or that none keeps `share` of row 0's right answers.
void print_proposal(std::ostream& out, const std::vector<evaluation_result>& results, const evaluation_result* found,
                    double share);
/// What held-out prompts say of each layer, and what the model loses when that layer alone computes a share of its neurons.
void print_calibration(std::ostream& out, const calibration& fitted);
void print_question(std::ostream& out, const shown_question& shown);

/// `{"machine": ..., "settings": ..., "results": [...]}`; null is what is not known: what needs a dense run without one,
/// `decode_ms_per_token` where nothing was generated, masses where none were measured. `with_prompts`: the results of each
/// prompt too, which `results_in` reads.
nlohmann::json to_json(const nlohmann::json& settings, const std::vector<evaluation_result>& results,
                       bool with_prompts);
/// What such a file holds of each method's prompts; nothing where there is no file. Throws `error` where its settings
/// differ in more than the number of prompts.
std::vector<evaluation_result> results_in(const std::filesystem::path& path, const nlohmann::json& settings);

/// Whether a file can be written: asked before the work, not after it. Keeps what is there, and leaves nothing behind.
bool can_write(const std::filesystem::path& path);

/// Throws `error` where a file holds anything but results, which are written over.
void check_replaceable(const std::filesystem::path& path);

/// One line for a terminal: what would steer it stands as '?', a line break as a blank.
std::string one_line(std::string text);

/// One line that rewrites itself on a terminal; elsewhere a line every now and then. Says how long the rest will take.
class progress_line {
 public:
  /// `unit`: what is counted, such as "prefill".
  progress_line(std::ostream& out, bool terminal, const char* unit);
  void operator()(std::int64_t done, std::int64_t all, const std::string& next);

 private:
  using clock = std::chrono::steady_clock;
  std::ostream& out_;
  bool terminal_;
  const char* unit_;
  clock::time_point start_, last_;
  std::int64_t first_ = -1;
};

}  // namespace needle
