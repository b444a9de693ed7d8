// SPDX-License-Identifier: Apache-2.0
/// \file What the units of different processor levels offer, in tier-0 types only.
#pragma once

#include <skim/append.hpp>
#include <skim/executor.hpp>
#include <skim/neuron_selector/fastforward.hpp>
#include <skim/workspace.hpp>

/// Appends the chunk, then attends to it with every selector, one after another, then computes an FFN in several ways.
struct unit_call {
  skim::append_args append;
  skim::attention_args attention;
  skim::index_lists lists;
  skim::ffn_args ffn;
  skim::fastforward fastforward;
  skim::memory workspace;
  skim::host_executor pool;
  float* sums;  ///< [unit_rules], of the absolute outputs of each rule
};

inline constexpr int unit_rules = 11;

/// The first report that is not ok.
using unit_function = skim::report (*)(const unit_call&);
skim::report attend_x86_64(const unit_call&);
skim::report attend_x86_64_v3(const unit_call&);
skim::report attend_x86_64_v4(const unit_call&);
