// SPDX-License-Identifier: Apache-2.0
/// \file Which settings of QUOKA a model needs: a budget and a number of queries, tried against each other.
#pragma once

#include "evaluation.hpp"

namespace needle {

struct tuning_settings {
  std::vector<std::int64_t> budgets = {256, 512, 1024, 2048}, queries = {16, 32, 48, 64, 128};
  double share = 0.99;  ///< of dense attention's right answers, that a setting must keep
};

/// Dense attention, then every pair, budgets in the outer loop. Throws `error` for settings that mean nothing.
std::vector<method> tuning_methods(const tuning_settings& settings);

/// The quickest to the first token of the sparse rows that keep `share` of the right answers of row 0, dense attention;
/// null if none does.
const evaluation_result* cheapest(const std::vector<evaluation_result>& results, double share);

}  // namespace needle
