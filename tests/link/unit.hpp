// SPDX-License-Identifier: Apache-2.0
/// \file What the units of different processor levels offer, in tier-0 types only.
#pragma once

#include <skim/append.hpp>
#include <skim/eviction.hpp>
#include <skim/linear.hpp>
#include <skim/neuron_selector/calibrated_set.hpp>
#include <skim/neuron_selector/fastforward.hpp>
#include <skim/workspace.hpp>

/// One call of every operation, with memory for each.
struct unit_call {
  skim::append_args append;
  skim::attention_args attention;
  skim::index_lists lists;  ///< what attention reads
  skim::eviction_args eviction;
  skim::index_lists kept;  ///< what stays
  skim::tensor_view<float, 2> scores;
  skim::ffn_args ffn;
  skim::index_lists neurons;
  skim::fastforward fastforward;
  skim::calibrated_set calibrated_set;
  skim::linear_args linear;
  skim::memory state, workspace;
  skim::executor_ref executor;
  float* sums;  ///< [unit_rules], a number that is positive for each rule
};

inline constexpr int unit_rules = 39;

/// Runs every operation with every policy; the first report that is not ok.
using unit_function = skim::report (*)(const unit_call&);
skim::report run_x86_64(const unit_call&);
skim::report run_x86_64_v3(const unit_call&);
skim::report run_x86_64_v4(const unit_call&);
