// SPDX-License-Identifier: Apache-2.0
/// \file The attention calls that tests sample: every two values of every two parameters meet.
#pragma once

#include "attention_case.hpp"
#include "pairwise.hpp"

#include <skim/cpu/simd/compat.hpp>

namespace skim_test {

inline constexpr skim::element element_types[] = {skim::element::f32, skim::element::f16, skim::element::bf16};

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

/// Values of the parameters, in the order in which `attention_case_of` reads them.
inline std::vector<int> attention_parameters() {
  const auto count = [](const auto& values) { return static_cast<int>(std::size(values)); };
  return {3,
          count(sampled_dims()),
          count(sampled_Tq()),
          count(sampled_Tk),
          count(sampled_groups),  // the product
          3,
          3,
          3,
          3,
          2,
          3,
          2,
          count(sampled_forms),
          count(sampled_masks),
          2,
          2,
          2,
          2,
          2,
          5,
          4,
          2,
          2};
}

inline attention_case attention_case_of(const std::vector<int>& row) {
  const int* next = row.data();
  const auto take = [&next] { return static_cast<std::size_t>(*next++); };
  attention_case c;
  c.kv_type = element_types[take()];
  const head_dims dims = sampled_dims()[take()];
  c.D = dims.D;
  c.Dv = dims.Dv;
  c.Tq = sampled_Tq()[take()];
  c.Tk = sampled_Tk[take()];
  c.G = sampled_groups[take()];
  c.q_type = element_types[take()];
  c.out_type = element_types[take()];
  c.Hk = static_cast<std::int64_t>(take()) + 1;
  c.kv_order = static_cast<memory_order>(take());
  c.q_order = static_cast<memory_order>(take());
  c.padding = static_cast<std::int64_t>(take()) * 3;
  c.shift = static_cast<std::int64_t>(take());
  const cache_form form = sampled_forms[take()];
  c.layout = form.layout;
  c.page_size = form.page_size;
  c.mask = sampled_masks[take()];
  c.scale = take() ? 0.3f : 0.0f;
  c.soft_cap = take() ? 5.0f : 0.0f;
  c.sinks = take();
  c.lse = take();
  c.lengths = take();
  c.positions = static_cast<positions_kind>(take());
  c.lists = static_cast<lists_kind>(take());
  c.sequences = take() ? 3 : 1;
  c.dot_pairs = take();
  // Rounding a query shifts logits in proportion to their size: those that dot_pairs rounds have logits like a model's.
  if (c.dot_pairs && c.q_type != skim::element::bf16) c.scale = 0;
  // The reference needs a second for 10^9 products: the largest calls have one KV head and one sequence.
  if (c.Hk * c.G * c.Tq * (c.Tk + c.Tq) * c.D > 300000000) {
    c.Hk = 1;
    c.sequences = 1;
  }
  return c;
}

inline std::vector<attention_case> attention_sample() {
  std::vector<attention_case> cases;
  const pairwise_sample sample(attention_parameters());
  for (const auto& row : sample.rows()) cases.push_back(attention_case_of(row));
  return cases;
}

}  // namespace skim_test
