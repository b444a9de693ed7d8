// SPDX-License-Identifier: Apache-2.0
/// \file The attention calls that tests sample: every two values of every two parameters meet.
#pragma once

#include "attention_case.hpp"
#include "pairwise.hpp"

#include <skim/cpu/simd/compat.hpp>

namespace skim_test {

inline constexpr skim::element element_types[] = {skim::element::f32, skim::element::f16, skim::element::bf16};
inline constexpr skim::element cache_types[] = {skim::element::f32, skim::element::f16, skim::element::bf16,
                                                skim::element::q8_0, skim::element::int8};
/// How many of them a back-end reads: the CPU all, a GPU the first three.
inline constexpr int types_on_cpu = 5, types_on_gpu = 3;

struct head_dims {
  std::int64_t D, Dv;
};

/// Head dimensions in use, and some that no vector divides.
inline std::vector<head_dims> sampled_dims() {
  const std::int64_t W = skim::cpu::simd::lanes;
  return {{40, 40},   {64, 64}, {80, 80}, {96, 96}, {128, 128}, {256, 256},
          {576, 512}, {1, 1},   {7, 5},   {33, 70}, {W - 1, W}, {W + 1, W - 1}};
}

/// The fixed lengths; with a group of 1, rows = Tq also meet the lane count.
inline std::vector<std::int64_t> sampled_Tq() {
  const std::int64_t W = skim::cpu::simd::lanes;
  return {0, 1, 2, 7, 64, 128, 200, W - 1, W, W + 1, 2 * W + 1};
}
inline const std::vector<std::int64_t> sampled_Tk{0, 1, 15, 16, 17, 113, 1000, 4097};
inline const std::vector<std::int64_t> sampled_groups{1, 3, 4, 6, 7, 8};

struct cache_form {
  skim::kv_layout layout;
  std::int64_t page_size;
};
inline const std::vector<cache_form> sampled_forms{{skim::kv_layout::contiguous, 1},
                                                   {skim::kv_layout::paged, 1},
                                                   {skim::kv_layout::paged, 16},
                                                   {skim::kv_layout::paged, 32},
                                                   {skim::kv_layout::ring, 1}};
inline const std::vector<skim::mask> sampled_masks{skim::mask::causal(), skim::mask::window(5), skim::mask::window(100),
                                                   skim::mask::full(), skim::mask{9, 3}};
inline const std::vector<std::int64_t> sampled_block_rows{0, 3, 64};

/// A parameter of a call: how many values it has, and how to set the i-th.
struct attention_parameter {
  const char* name;
  int count;
  void (*set)(attention_case& c, std::size_t i);
};

inline std::vector<attention_parameter> attention_parameters(int types) {
  const auto count = [](const auto& values) { return static_cast<int>(std::size(values)); };
  return {
      {"type of K", types, [](auto& c, std::size_t i) { c.kv_type = cache_types[i]; }},
      {"D and Dv", count(sampled_dims()),
       [](auto& c, std::size_t i) {
         c.D = sampled_dims()[i].D;
         c.Dv = sampled_dims()[i].Dv;
       }},
      {"Tq", count(sampled_Tq()), [](auto& c, std::size_t i) { c.Tq = sampled_Tq()[i]; }},
      {"Tk", count(sampled_Tk), [](auto& c, std::size_t i) { c.Tk = sampled_Tk[i]; }},
      {"group", count(sampled_groups), [](auto& c, std::size_t i) { c.G = sampled_groups[i]; }},
      // Up to here the full product is tested, see exhaustive_attention.
      {"type of q", 3, [](auto& c, std::size_t i) { c.q_type = element_types[i]; }},
      {"type of out", 3, [](auto& c, std::size_t i) { c.out_type = element_types[i]; }},
      {"type of V", 1 + types, [](auto& c, std::size_t i) { c.v_type = static_cast<skim::element>(i); }},
      {"KV heads", 3, [](auto& c, std::size_t i) { c.Hk = static_cast<std::int64_t>(i) + 1; }},
      {"order of K and V", 3, [](auto& c, std::size_t i) { c.kv_order = static_cast<memory_order>(i); }},
      {"order of q", 2, [](auto& c, std::size_t i) { c.q_order = static_cast<memory_order>(i); }},
      {"padding", 3, [](auto& c, std::size_t i) { c.padding = static_cast<std::int64_t>(i) * 3; }},
      {"shift", 2, [](auto& c, std::size_t i) { c.shift = static_cast<std::int64_t>(i); }},
      {"layout", count(sampled_forms),
       [](auto& c, std::size_t i) {
         c.layout = sampled_forms[i].layout;
         c.page_size = sampled_forms[i].page_size;
       }},
      {"mask", count(sampled_masks), [](auto& c, std::size_t i) { c.mask = sampled_masks[i]; }},
      {"scale", 2, [](auto& c, std::size_t i) { c.scale = i ? 0.3f : 0.0f; }},
      {"soft cap", 2, [](auto& c, std::size_t i) { c.soft_cap = i ? 5.0f : 0.0f; }},
      {"sinks", 2, [](auto& c, std::size_t i) { c.sinks = i; }},
      {"lse", 2, [](auto& c, std::size_t i) { c.lse = i; }},
      {"lengths", 2, [](auto& c, std::size_t i) { c.lengths = i; }},
      {"positions", 5, [](auto& c, std::size_t i) { c.positions = static_cast<positions_kind>(i); }},
      {"lists", 4, [](auto& c, std::size_t i) { c.lists = static_cast<lists_kind>(i); }},
      {"rows of a block", count(sampled_block_rows),
       [](auto& c, std::size_t i) { c.block_rows = sampled_block_rows[i]; }},
      {"sequences", 3,
       [](auto& c, std::size_t i) {
         c.sequences = i == 0 ? 1 : 3;
         c.batch = i == 2;
       }},
      {"arithmetic", 2, [](auto& c, std::size_t i) { c.dot_pairs = i; }},
      {"bias", 3, [](auto& c, std::size_t i) { c.bias = static_cast<bias_kind>(i); }},
      {"slopes", 2, [](auto& c, std::size_t i) { c.slopes = i; }},
      {"values in keys", 2, [](auto& c, std::size_t i) { c.values_in_keys = i; }},
  };
}

inline std::vector<int> attention_counts(int types = types_on_cpu) {
  std::vector<int> counts;
  for (const attention_parameter& parameter : attention_parameters(types)) counts.push_back(parameter.count);
  return counts;
}

/// What does not go together gives way.
inline void make_valid(attention_case& c) {
  if (c.values_in_keys) {
    c.v_type = c.kv_type;
    c.Dv = std::min(c.Dv, c.D);
  }
  if (c.type_of_v() != c.kv_type && c.kv_order == memory_order::interleaved) c.kv_order = memory_order::token_major;
  fit_stored_types(c);
  if (c.batch) {
    if (c.layout != skim::kv_layout::paged) c.page_size = 16;
    c.layout = skim::kv_layout::paged;
    c.lengths = c.inverse_norms = false;
    if (c.positions != positions_kind::from_zero) c.positions = positions_kind::from_first;
  }
}

inline attention_case attention_case_of(const std::vector<int>& row) {
  attention_case c;
  const std::vector<attention_parameter> parameters = attention_parameters(types_on_cpu);
  for (std::size_t p = 0; p < parameters.size(); ++p) parameters[p].set(c, static_cast<std::size_t>(row[p]));
  make_valid(c);
  // Rounding a query shifts logits in proportion to their size: those that dot_pairs rounds have logits like a model's.
  if (c.dot_pairs && c.q_type != skim::element::bf16) c.scale = 0;
  // The reference needs a second for 10^9 products: the largest calls have one KV head and one sequence.
  if (c.Hk * c.G * c.Tq * (c.Tk + c.Tq) * c.D > 300000000) {
    c.Hk = 1;
    c.sequences = 1;
  }
  if (c.Hq() * c.Tq * (c.Tk + c.Tq) > 3000000 && c.bias == bias_kind::by_head) c.bias = bias_kind::shared;
  return c;
}

inline std::vector<attention_case> attention_sample(int types = types_on_cpu) {
  std::vector<attention_case> cases;
  const pairwise_sample sample(attention_counts(types));
  for (const auto& row : sample.rows()) cases.push_back(attention_case_of(row));
  return cases;
}

}  // namespace skim_test
