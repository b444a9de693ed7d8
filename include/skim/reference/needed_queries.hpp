// SPDX-License-Identifier: Apache-2.0
/// \file QUOKA's own rule for the queries that score, and the moments of their products, in plain double loops: one function
/// per stage (see `query_choice::needed` and `similarity::standardised`). One block of rows, one KV head at a time. Allocates.
#pragma once

#include <skim/attention.hpp>
#include <skim/reference/attention.hpp>
#include <skim/reference/vectors.hpp>
#include <skim/selector/queries.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace skim { inline namespace v0_2 { namespace reference {

/// The KV head's own rows `[G * Tq][D]`: row g * Tq + t is scale * q[t, head * G + g].
inline vector_list own_rows(const attention_args& args, const attention_sequence& block, std::int64_t head) {
  vector_list rows;
  const double scale = static_cast<double>(logit_scale(args));
  for (std::int64_t h = head * group_size(args); h < (head + 1) * group_size(args); ++h) {
    for (std::int64_t t = 0; t < block.Tq; ++t) {
      rows.push_back(query_of(args, block, t, h));
      for (double& value : rows.back()) value *= scale;
    }
  }
  return rows;
}

/// Which of `n` candidates, in order of position, need is estimated from.
inline std::vector<std::int64_t> sampled_places(std::int64_t n, std::int64_t samples) {
  std::vector<std::int64_t> places;
  const std::int64_t step = (std::max)(std::int64_t{1}, n / samples);
  for (std::int64_t place = 4; place < n; place += step) places.push_back(place);
  return places;
}

/// Those that moments are of.
inline std::vector<std::int64_t> moment_places(std::int64_t n) {
  std::vector<std::int64_t> places;
  for (std::int64_t place = 16; place < n; place += 32) places.push_back(place);
  if (places.size() >= 32) return places;
  places.resize(static_cast<std::size_t>(n));
  std::iota(places.begin(), places.end(), std::int64_t{0});
  return places;
}

/// ln sum exp of what is finite; -inf of nothing.
inline double log_sum_exp(const std::vector<double>& values) {
  double most = -std::numeric_limits<double>::infinity(), sum = 0;
  for (const double value : values) {
    if (std::isfinite(value)) most = (std::max)(most, value);
  }
  if (std::isinf(most)) return most;
  for (const double value : values) sum += std::isfinite(value) ? std::exp(value - most) : 0;
  return most + std::log(sum);
}

/// Stage 1: need of each row, 0 of rows that are not finite. `slot_ids`: the candidates, in order of position.
inline std::vector<double> needs_of_rows(const query_rule& rule, const attention_args& args,
                                         const attention_sequence& block, std::int64_t head,
                                         const std::vector<std::int64_t>& slot_ids) {
  const kv_view& kv = block.kv;
  const std::int64_t n = static_cast<std::int64_t>(slot_ids.size()), past = block.past(head);
  const auto places = sampled_places(n, rule.samples);
  const vector_list rows = own_rows(args, block, head);
  std::vector<double> needs;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const std::int64_t t = static_cast<std::int64_t>(r) % block.Tq;
    std::vector<double> sampled, own;
    for (const std::int64_t place : places) {
      const auto key = row_of(kv, kv.k, head, slot_ids[static_cast<std::size_t>(place)]);
      if (is_finite(key)) sampled.push_back(dot(rows[r], key));
    }
    for (std::int64_t j = 0; j < block.Tq; ++j) {
      const auto key = row_of(kv, kv.k, head, past + j);
      if (!is_finite(key)) continue;
      if (args.mask.visible(query_position(block, head, t), kv.position(head, past + j)))
        own.push_back(dot(rows[r], key));
    }
    const double share = static_cast<double>(n) / static_cast<double>((std::max)(places.size(), std::size_t{1}));
    const double P = log_sum_exp(sampled) + std::log(share), O = log_sum_exp(own);
    const bool known = std::isfinite(P) && std::isfinite(O);
    needs.push_back(!is_finite(rows[r]) ? 0 : known ? 1 / (1 + std::exp(O - P)) : 1);
  }
  return needs;
}

/// Stage 2: y of each row; of rows that are not finite, themselves.
inline vector_list features_of_rows(vector_list rows, std::int64_t Tq) {
  if (Tq == 1) {
    for (auto& row : rows) row = is_finite(row) ? unit(row) : row;
    return rows;
  }
  for (std::size_t first = 0; first < rows.size(); first += static_cast<std::size_t>(Tq)) {
    vector_list finite;
    for (std::size_t r = first; r < first + static_cast<std::size_t>(Tq); ++r) {
      if (is_finite(rows[r])) finite.push_back(rows[r]);
    }
    if (finite.empty()) continue;
    const std::vector<double> center = mean(finite);
    double spread = 0, size = 0;
    for (const auto& row : finite) {
      spread += squared_distance(row, center) / static_cast<double>(finite.size());
      size += dot(row, row) / static_cast<double>(finite.size());
    }
    const bool flat = std::sqrt(spread) <= 1e-6 * std::sqrt(size);
    for (std::size_t r = first; r < first + static_cast<std::size_t>(Tq); ++r) {
      if (!is_finite(rows[r])) continue;
      for (std::size_t d = 0; d < center.size(); ++d) {
        rows[r][d] = flat ? 0 : (rows[r][d] - center[d]) / std::sqrt(spread);
      }
    }
  }
  return rows;
}

/// What picking a row would gain: need times its squared distance to the nearest of `picked`, or its squared length where
/// there is none; -1 of rows that are picked or not finite.
inline std::vector<double> gains(const std::vector<double>& needs, const vector_list& features,
                                 const std::vector<std::int64_t>& picked) {
  std::vector<double> answer;
  for (std::size_t r = 0; r < features.size(); ++r) {
    const bool taken = std::find(picked.begin(), picked.end(), static_cast<std::int64_t>(r)) != picked.end();
    double nearest = picked.empty() ? dot(features[r], features[r]) : std::numeric_limits<double>::infinity();
    for (const std::int64_t c : picked) {
      nearest = (std::min)(nearest, squared_distance(features[r], features[static_cast<std::size_t>(c)]));
    }
    answer.push_back(taken || !is_finite(features[r]) ? -1 : needs[r] * nearest);
  }
  return answer;
}

/// Rows of one round of picking.
inline std::int64_t round_rows(std::int64_t n) {
  return (std::max)(std::int64_t{1}, n / 4);
}

/// Stage 3: up to `n` rows, in the order picked: the finite ones.
inline std::vector<std::int64_t> pick_rows(const std::vector<double>& needs, const vector_list& features,
                                           std::int64_t n) {
  std::vector<std::int64_t> picked;
  while (static_cast<std::int64_t>(picked.size()) < n) {
    const std::vector<double> gain = gains(needs, features, picked);
    std::vector<std::int64_t> order;
    for (std::size_t r = 0; r < gain.size(); ++r) {
      if (gain[r] >= 0) order.push_back(static_cast<std::int64_t>(r));
    }
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
      return gain[static_cast<std::size_t>(a)] > gain[static_cast<std::size_t>(b)];
    });
    const std::int64_t left = n - static_cast<std::int64_t>(picked.size());
    const std::int64_t count = (std::min)({round_rows(n), left, static_cast<std::int64_t>(order.size())});
    if (count == 0) break;
    picked.insert(picked.end(), order.begin(), order.begin() + count);
  }
  return picked;
}

/// Which of the picked rows each row is nearest to; -1 of rows that are not finite.
inline std::vector<std::int64_t> nearest_picked(const vector_list& features, const std::vector<std::int64_t>& picked) {
  std::vector<std::int64_t> answer;
  for (const auto& row : features) {
    double least = std::numeric_limits<double>::infinity();
    std::int64_t nearest = -1;
    for (std::size_t i = 0; i < picked.size() && is_finite(row); ++i) {
      const double distance = squared_distance(row, features[static_cast<std::size_t>(picked[i])]);
      if (distance < least) nearest = static_cast<std::int64_t>(i);
      least = (std::min)(least, distance);
    }
    answer.push_back(nearest);
  }
  return answer;
}

/// Stage 4: the picked rows' members averaged.
inline vector_list average_members(const vector_list& rows, const std::vector<double>& needs,
                                   const std::vector<std::int64_t>& picked, const std::vector<std::int64_t>& nearest) {
  vector_list queries;
  for (std::size_t i = 0; i < picked.size(); ++i) {
    std::vector<double> sum(rows.front().size(), 0.0);
    double weight = 0;
    for (std::size_t r = 0; r < rows.size(); ++r) {
      if (nearest[r] != static_cast<std::int64_t>(i)) continue;
      weight += needs[r];
      for (std::size_t d = 0; d < sum.size(); ++d) sum[d] += needs[r] * rows[r][d];
    }
    for (double& value : sum) value /= weight;
    queries.push_back(weight <= 1e-6 ? rows[static_cast<std::size_t>(picked[i])] : sum);
  }
  return queries;
}

/// Stages 1 to 4, or the rows that other rules keep of a head's own; those with an infinity or NaN left out.
inline vector_list choose_own_queries(const query_rule& rule, const attention_args& args,
                                      const attention_sequence& block, std::int64_t head,
                                      const std::vector<std::int64_t>& slot_ids) {
  const vector_list rows = own_rows(args, block, head);
  const std::int64_t R = static_cast<std::int64_t>(rows.size()), G = group_size(args);
  const std::int64_t kept = rule.kept(block.Tq, G);
  vector_list queries;
  if (kept < R && rule.choice == query_choice::needed) {
    const auto needs = needs_of_rows(rule, args, block, head, slot_ids);
    const vector_list features = features_of_rows(rows, block.Tq);
    const auto picked = pick_rows(needs, features, rule.n);
    return average_members(rows, needs, picked, nearest_picked(features, picked));
  }
  std::vector<std::int32_t> drawn(rows.size());
  queries::draw_rows(rule, R, block.Tk(), drawn.data());
  for (std::int64_t i = 0; i < kept; ++i) {
    const std::int64_t newest = i % G * block.Tq + block.Tq - 1 - i / G;
    const std::int64_t r = kept == R                             ? i
                           : rule.choice == query_choice::random ? drawn[static_cast<std::size_t>(i)]
                                                                 : newest;
    if (is_finite(rows[static_cast<std::size_t>(r)])) queries.push_back(rows[static_cast<std::size_t>(r)]);
  }
  return queries;
}

/// To the eight significant bits of bf16 (ties to even), whatever its size.
inline double rounded_to_bf16(double value) {
  int exponent = 0;
  const double fraction = std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8);
}

/// Each 32 numbers to integers up to 127 times a scale, whatever the size of them all. In f32, so that a kernel that rounds
/// the same numbers finds the same integers.
inline std::vector<double> rounded_to_8_bits(std::vector<double> query) {
  double largest = 0;
  for (const double value : query) largest = (std::max)(largest, std::fabs(value));
  if (largest == 0 || !std::isfinite(largest)) return query;
  const int power = std::ilogb(largest);
  for (std::size_t begin = 0; begin < query.size(); begin += 32) {
    const std::size_t end = (std::min)(begin + 32, query.size());
    std::vector<float> block;
    float most = 0;
    for (std::size_t d = begin; d < end; ++d) {
      block.push_back(static_cast<float>(std::ldexp(query[d], -power)));
      most = (std::max)(most, std::fabs(block.back()));
    }
    const float scale = skim::detail::scale_of_query_block(most), inverse = scale > 0 ? 1 / scale : 0.0f;
    for (std::size_t d = begin; d < end; ++d) {
      const int number = from_float<std::int8_t>(block[d - begin] * inverse);
      query[d] = std::ldexp(static_cast<double>(scale) * number, power);
    }
  }
  return query;
}

/// The queries as they meet keys of a type: rounded to bf16, or to 8 bits, where these are. What follows does not depend on
/// their size.
inline vector_list rounded_for(element type, vector_list queries) {
  for (auto& query : queries) {
    if (has_8_bits(type)) query = rounded_to_8_bits(query);
    for (double& value : query) value = type == element::bf16 ? rounded_to_bf16(value) : value;
  }
  return queries;
}

/// Mean and standard deviation of a query's products; a query that does not score has deviation 0.
struct moments {
  double mean = 0, deviation = 0;
};

inline moments moments_of(const std::vector<double>& products) {
  double count = 0, sum = 0, squares = 0, spread = 0;
  for (const double p : products) {
    if (!std::isfinite(p)) continue;
    count += 1;
    sum += p;
    squares += p * p;
  }
  moments answer;
  if (count < 2) return answer;
  answer.mean = sum / count;
  for (const double p : products) spread += std::isfinite(p) ? (p - answer.mean) * (p - answer.mean) : 0;
  const double deviation = std::sqrt(spread / (count - 1));
  if (deviation > 1e-6 * std::sqrt(squares / count)) answer.deviation = deviation;
  return answer;
}

/// Of each query. `slot_ids`: the candidates, in order of position.
inline std::vector<moments> moments_of_queries(const attention_sequence& block, std::int64_t head,
                                               const vector_list& queries, const std::vector<std::int64_t>& slot_ids) {
  const kv_view& kv = block.kv;
  const auto places = moment_places(static_cast<std::int64_t>(slot_ids.size()));
  std::vector<moments> answer;
  for (const auto& query : queries) {
    std::vector<double> products;
    for (const std::int64_t place : places) {
      products.push_back(dot(query, row_of(kv, kv.k, head, slot_ids[static_cast<std::size_t>(place)])));
    }
    answer.push_back(moments_of(products));
  }
  return answer;
}

/// The largest standardised product with one key; NaN where it is not finite.
inline double standardised_score(const std::vector<double>& key, const vector_list& queries,
                                 const std::vector<moments>& of) {
  double most = -std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < queries.size(); ++i) {
    const double z = (dot(queries[i], key) - of[i].mean) / of[i].deviation;
    if (of[i].deviation > 0 && z > most) most = z;
  }
  return std::isfinite(most) ? most : std::numeric_limits<double>::quiet_NaN();
}

}}}  // namespace skim::v0_2::reference
