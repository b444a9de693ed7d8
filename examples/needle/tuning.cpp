// SPDX-License-Identifier: Apache-2.0
#include "tuning.hpp"

#include "error.hpp"

#include <cmath>

namespace needle {

std::vector<method> tuning_methods(const tuning_settings& settings) {
  if (std::isnan(settings.share)) throw error("share is nan, expected 0 to 1");
  std::vector<std::string> texts = {"dense"};
  for (const std::int64_t budget : settings.budgets) {
    for (const std::int64_t n : settings.queries) {
      texts.push_back("quoka:n=" + std::to_string(n) + ",budget=" + std::to_string(budget));
    }
  }
  return parse_methods(texts);
}

const evaluation_result* cheapest(const std::vector<evaluation_result>& results, double share) {
  const auto first_token = [](const evaluation_result& of) { return of.median_of(&prompt_result::ttft_ms); };
  const evaluation_result* found = nullptr;
  for (std::size_t i = 1; i < results.size(); ++i) {
    if (results[i].accuracy() < share * results[0].accuracy()) continue;
    if (!found || first_token(results[i]) < first_token(*found)) found = &results[i];
  }
  return found;
}

}  // namespace needle
