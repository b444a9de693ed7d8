// SPDX-License-Identifier: Apache-2.0
/// \file Does a selection rule work on this model? The share of attention that the selected keys receive. Allocates.
///
/// On your own model, with a layer's real queries and cache: run dense attention and attention over the selected keys,
/// both with `attention_args::lse`, and give the two log-sum-exps to `captured_mass`:
///
///   cpu::attention<> every_key;             every_key.run(dense_args, ...);        // dense_args.lse = dense_lse
///   cpu::attention chosen{quoka{...}};      chosen.run(sparse_args, ...);          // sparse_args.lse = sparse_lse
///   for (const auto& head : testing::captured_mass(sparse_lse, dense_lse).heads) print(head.mean, head.quantile(0.05));
///
/// A mass near 1 means that the row's softmax lost nothing. Heads or rows with a low one are where a rule fails, long
/// before a benchmark of the whole model shows it. Collect rows of many chunks: one low row in a thousand is a needle
/// that was not found.
#pragma once

#include <skim/view.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

namespace skim { inline namespace v0_2 { namespace testing {

/// Masses of one query head, ascending.
struct head_mass {
  std::vector<double> masses;  ///< [Tq], sorted
  double mean = 1;

  double lowest() const { return masses.empty() ? 1 : masses.front(); }

  /// The smallest mass that a share `q` (0 to 1) of the rows does not exceed: 0.05 = the worst twentieth.
  double quantile(double q) const {
    if (masses.empty()) return 1;
    const double rank = std::ceil(q * static_cast<double>(masses.size())) - 1;
    const double last = static_cast<double>(masses.size() - 1);
    return masses[static_cast<std::size_t>((std::min)((std::max)(rank, 0.0), last))];
  }
};

struct captured_mass_report {
  std::vector<head_mass> heads;  ///< [Hq]
  std::int64_t undefined = 0;    ///< rows in which either log-sum-exp is NaN; they count as mass 0

  double lowest() const {
    double least = 1;
    for (const head_mass& head : heads) least = (std::min)(least, head.lowest());
    return least;
  }
  double mean() const {
    double sum = 0;
    for (const head_mass& head : heads) sum += head.mean;
    return heads.empty() ? 1 : sum / static_cast<double>(heads.size());
  }
};

/// exp(lse_selected - lse_dense) of one row; 1 where dense attention sees nothing either. Without a sink logit a value
/// above 1, beyond rounding, means that the two calls differ in more than their keys.
inline double captured_mass_of(float lse_selected, float lse_dense) {
  if (lse_selected == lse_dense) return 1;
  return std::exp(static_cast<double>(lse_selected) - static_cast<double>(lse_dense));
}

/// `lse_selected`, `lse_dense` [Tq, Hq]: of the same queries, masks and sinks. Extents must be equal.
inline captured_mass_report captured_mass(tensor_view<const float, 2> lse_selected,
                                          tensor_view<const float, 2> lse_dense) {
  captured_mass_report report;
  const std::int64_t Tq = lse_dense.extents[0], Hq = lse_dense.extents[1];
  for (std::int64_t h = 0; h < Hq; ++h) {
    head_mass head;
    double sum = 0;
    for (std::int64_t t = 0; t < Tq; ++t) {
      double mass = captured_mass_of(*lse_selected.at(t, h), *lse_dense.at(t, h));
      if (std::isnan(mass)) {
        mass = 0;
        ++report.undefined;
      }
      sum += mass;
      head.masses.push_back(mass);
    }
    if (Tq > 0) head.mean = sum / static_cast<double>(Tq);
    std::sort(head.masses.begin(), head.masses.end());
    report.heads.push_back(head);
  }
  return report;
}

}}}  // namespace skim::v0_2::testing
