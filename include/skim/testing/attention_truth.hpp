// SPDX-License-Identifier: Apache-2.0
/// \file Exact attention and how far from it a kernel's rounding may lead, element by element. Allocates.
#pragma once

#include <skim/reference/attention.hpp>

namespace skim { inline namespace v0_2 { namespace testing {

/// The arithmetic that a kernel is allowed. With `S = sum_j p_j |v_j|` (per output element), `A` the row's largest
/// `scale * sum_d |q_d k_d|`, `B` its largest |bias| + |slope * distance| and `n` keys, an output may differ from the exact
/// one by
///   (expm1(2 delta) + 2 factor + sum (32 + n / 16) + sigma) S + 2^-125 sum_j |v_j|,
///   delta = (sum (D + 8) + factor) A + 8 sum B,
/// where K and V of 8 bits are rounded to the same, K's factor counts twice and V's is added once; and by half a unit in the last place of its own type; a log-sum-exp by delta + sum (32 + n / 16 + 4 |lse|) + sigma.
/// The first term is the logits' error, which moves weights by exp(delta) and their total by as much. n / 16 and not n:
/// rounding errors of a sum that is kept in blocks or fused do not all have one sign. sigma is that of a sink logit s with
/// the share p of the row's weights: p expm1(2 sum |s|). It is rounded to base 2, and then with what it is compared with,
/// which moves its weight against all others. Weights below 2^-126 of the largest may count as 0, hence the last term.
///
/// The bounds hold for every call that `check` accepts. Relative to |exact| there is none, since values may cancel; on
/// normal data they do not, nor do rounding errors have one sign: see `on_normal_data`.
struct arithmetic {
  double sum = 0x1p-24;  ///< unit roundoff of sums and of exp
  double factor = 0;     ///< unit roundoff to which queries and weights are rounded before they are multiplied
  /// Limit of |out - exact|^2 / |exact|^2, of 64 numbers or more, before the output rounds.
  double nmse = std::numeric_limits<double>::infinity();

  /// With the limit that standard normal queries, keys and values keep, though the bounds by element are wider.
  constexpr arithmetic on_normal_data() const { return {sum, factor, factor > 0 ? 5e-5 : 1e-10}; }
  static constexpr arithmetic widen_fma() { return {}; }
  static constexpr arithmetic dot_pairs() { return {0x1p-24, 0x1p-8}; }
};

/// Unit roundoff of a storage type.
constexpr double roundoff(element type) {
  return type == element::f16 ? 0x1p-11 : type == element::bf16 ? 0x1p-8 : 0x1p-24;
}

/// Half of the smallest subnormal: the rounding of values that are tiny in their type.
constexpr double smallest_step(element type) {
  return type == element::f16 ? 0x1p-25 : 0x1p-134;  // bf16's subnormals end at 2^-133, f32's below
}

/// Exact results and bounds; row r = token * Hq + query head.
struct attention_truth {
  std::int64_t Tq = 0, Hq = 0, Dv = 0;
  std::vector<double> out, out_bound;  // [Tq * Hq, Dv]; the bound without the output's own rounding
  std::vector<double> lse, lse_bound;  // [Tq * Hq]
};

namespace detail {

/// K or V of the keys that one KV head reads, widened once for all its query rows: [keys, dim].
inline std::vector<double> widened(const kv_view& kv, const kv_tensor& tensor, std::int64_t head,
                                   const std::vector<std::int64_t>& slot_ids) {
  std::vector<double> rows(slot_ids.size() * static_cast<std::size_t>(tensor.dim));
  double* to = rows.data();
  for (const std::int64_t slot : slot_ids) {
    const stored_row row = kv.row(tensor, head, slot);
    skim::detail::with_stored_type(row.type, skim::detail::stored_types{}, [&](auto type) {
      const auto from = skim::detail::row_at<decltype(type)>(row.data);
      for (std::int64_t d = 0; d < tensor.dim; ++d) {
        *to++ = static_cast<double>(to_float(from[d])) * static_cast<double>(row.scale);
      }
    });
  }
  return rows;
}

/// sum_d a_d b_d and sum_d |a_d b_d|; eight sums each, which fill vectors and do not wait for one another.
struct products {
  double sum = 0, size = 0;

  products(const double* a, const double* b, std::int64_t n) {
    constexpr std::int64_t lanes = 8;
    double sums[lanes] = {}, sizes[lanes] = {};
    std::int64_t d = 0;
    for (; d + lanes <= n; d += lanes) {
      for (std::int64_t i = 0; i < lanes; ++i) {
        const double product = a[d + i] * b[d + i];
        sums[i] += product;
        sizes[i] += std::fabs(product);
      }
    }
    for (; d < n; ++d) {
      sums[d % lanes] += a[d] * b[d];
      sizes[d % lanes] += std::fabs(a[d] * b[d]);
    }
    for (std::int64_t i = 0; i < lanes; ++i) {
      sum += sums[i];
      size += sizes[i];
    }
  }
};

/// sum += weight v and size += weight |v|.
inline void add_scaled(const double* SKIM_RESTRICT v, double weight, std::int64_t n, double* SKIM_RESTRICT sum,
                       double* SKIM_RESTRICT size) {
  constexpr std::int64_t lanes = 8;  // a constant number of rounds, which compilers turn into vectors
  std::int64_t d = 0;
  for (; d + lanes <= n; d += lanes) {
    for (std::int64_t i = 0; i < lanes; ++i) {
      sum[d + i] += weight * v[d + i];
      size[d + i] += weight * std::fabs(v[d + i]);
    }
  }
  for (; d < n; ++d) {
    sum[d] += weight * v[d];
    size[d] += weight * std::fabs(v[d]);
  }
}

/// The keys of one KV head.
struct head_keys {
  std::vector<std::int64_t> slot_ids, positions;
  std::vector<double> k, v;

  head_keys(const attention_sequence& block, std::int64_t index, std::int64_t head, const index_lists* lists)
      : slot_ids(reference::slots_read(block, index, head, lists)),
        k(widened(block.kv, block.kv.k, head, slot_ids)),
        v(widened(block.kv, block.kv.v, head, slot_ids)) {
    for (const std::int64_t slot : slot_ids) positions.push_back(block.kv.position(head, slot));
  }
};

/// To what K or V as they are stored are rounded before they are multiplied.
inline double stored_factor(const arithmetic& rounding, const kv_tensor& tensor) {
  return has_8_bits(tensor.type) ? rounding.factor : 0;
}

/// One row: where its results go.
struct truth_row {
  double *out, *out_bound, *lse, *lse_bound;
};

inline void attend_row(const attention_args& args, const attention_sequence& block, std::int64_t t, std::int64_t h,
                       const head_keys& keys, const arithmetic& rounding, truth_row row) {
  const std::int64_t D = block.kv.k.dim, Dv = block.kv.v.dim,
                     position = reference::query_position(block, h / group_size(args), t);
  const double scale = static_cast<double>(logit_scale(args)), cap = static_cast<double>(args.soft_cap);
  const double nothing = -std::numeric_limits<double>::infinity();
  const double sink = args.sink_logits ? static_cast<double>(args.sink_logits[h]) : nothing;
  const std::vector<double> q = reference::query_of(args, block, t, h);
  std::vector<double> weights(keys.slot_ids.size(), nothing);
  std::vector<bool> sees(keys.slot_ids.size(), false);
  double largest = sink, size = 0, added_size = 0;
  std::int64_t seen = 0;
  bool empty = largest == nothing;  // until a logit above -inf, or NaN, is seen
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (!args.mask.visible(position, keys.positions[i])) continue;
    const double bias = reference::bias(args, block, t, h, keys.slot_ids[i]);
    if (bias == nothing) continue;
    const double penalty = reference::distance_penalty(args, block, t, h, keys.slot_ids[i]);
    const products dot(q.data(), keys.k.data() + static_cast<std::int64_t>(i) * D, D);
    weights[i] = (cap > 0 ? cap * std::tanh(scale * dot.sum / cap) : scale * dot.sum) + bias - penalty;
    sees[i] = true;
    if (std::isfinite(weights[i])) {
      size = (std::max)(size, std::fabs(scale) * dot.size);
      added_size = (std::max)(added_size, std::fabs(bias) + std::fabs(penalty));
    }
    largest = (std::max)(largest, weights[i]);
    if (weights[i] != nothing) empty = false;
    ++seen;
  }
  std::fill_n(row.out, Dv, 0.0);
  std::fill_n(row.out_bound, Dv, 0.0);
  *row.lse = nothing;
  *row.lse_bound = 0;
  if (empty) return;
  double total = std::exp(sink - largest);
  std::vector<double> sizes(static_cast<std::size_t>(Dv),
                            0.0);  // kernels take weights below 2^-126 of the largest for 0
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (!sees[i]) continue;
    const double weight = std::exp(weights[i] - largest);
    const double* const v = keys.v.data() + static_cast<std::int64_t>(i) * Dv;
    total += weight;
    add_scaled(v, weight, Dv, row.out, row.out_bound);
    for (std::int64_t d = 0; d < Dv; ++d) sizes[static_cast<std::size_t>(d)] += std::fabs(v[d]);
  }
  const double factors = rounding.factor + stored_factor(rounding, block.kv.k);
  const double delta = (rounding.sum * static_cast<double>(D + 8) + factors) * size + 8 * rounding.sum * added_size;
  const double sums = rounding.sum * (32 + static_cast<double>(seen) / 16);
  const double share = std::exp(sink - largest) / total;
  const double sink_error = share > 0 ? share * std::expm1(2 * rounding.sum * std::fabs(sink)) : 0;
  const double weights_error = 2 * rounding.factor + sums + sink_error;
  const double bound = (std::expm1(2 * delta) + weights_error + stored_factor(rounding, block.kv.v)) / total;
  *row.lse = largest + std::log(total);
  *row.lse_bound = delta + sums + 4 * rounding.sum * std::fabs(*row.lse) + sink_error;
  for (std::int64_t d = 0; d < Dv; ++d) {
    row.out[d] /= total;
    if (row.out_bound[d] != 0) row.out_bound[d] *= bound;  // a sink may be so large that nothing else has a weight
    row.out_bound[d] += 0x1p-125 * sizes[static_cast<std::size_t>(d)];
  }
}

}  // namespace detail

/// As `reference::attend` (a test compares the two), with bounds, and faster: keys are widened once per KV head.
inline attention_truth attend_exactly(const attention_args& args, const index_lists* lists = nullptr,
                                      const arithmetic& rounding = {}) {
  attention_truth truth;
  truth.Tq = args.q.extents[0];
  truth.Hq = args.q.extents[1];
  truth.Dv = args.out.extents[2];
  const std::size_t rows = static_cast<std::size_t>(truth.Tq * truth.Hq);
  truth.out.resize(rows * static_cast<std::size_t>(truth.Dv));
  truth.out_bound.resize(truth.out.size());
  truth.lse.resize(rows);
  truth.lse_bound.resize(rows);
  for_each_block(args, lists ? lists->block_rows : 0, [&](const attention_sequence& block, std::int64_t index) {
    const std::int64_t G = group_size(args);
    for (std::int64_t head = 0; head < block.kv.heads; ++head) {
      const detail::head_keys keys(block, index, head, lists);
      for (std::int64_t i = 0; i < block.Tq * G; ++i) {
        const std::int64_t h = head * G + i % G, row = (block.first_row + i / G) * truth.Hq + h;
        detail::attend_row(args, block, i / G, h, keys, rounding,
                           {truth.out.data() + row * truth.Dv, truth.out_bound.data() + row * truth.Dv,
                            truth.lse.data() + row, truth.lse_bound.data() + row});
      }
    }
  });
  return truth;
}

}}}  // namespace skim::v0_2::testing
