// SPDX-License-Identifier: Apache-2.0
// The caches that benchmarks work on.
#pragma once

#include "bench.hpp"

#include <skim/skim.hpp>

#include <map>
#include <memory>
#include <random>
#include <tuple>

namespace bench {

inline std::int64_t bytes_per_token(const shape& of, skim::element type) {
  return 2 * of.Hk * skim::bytes_of(type, of.D);
}

/// Of queries and outputs: the cache's own, as in an engine of that type, or f32 beside a cache of 8 bits.
inline skim::element type_of_rows(skim::element cache) {
  return cache == skim::element::q8_0 || cache == skim::element::int8 ? skim::element::f32 : cache;
}

/// Whether rows are stored with scales, as integers are.
inline bool has_scales(skim::element type) {
  return skim::format_of(type).range > 0;
}

/// The KV caches of many layers, with inverse norms of the keys, as an engine that appends chunk by chunk holds them.
///
/// Between two calls for one layer an engine visits all others and reads their weights, so that a layer's past keys are in
/// no cache when it returns. Here calls go round the layers, which together hold four times the last-level cache: twice
/// that of keys alone, of which a selection reads little else. Queries and output stay where they are, as in an engine
/// that has just computed them.
class layers {
 public:
  static std::int64_t tokens_wanted(const shape& of, skim::element type) {
    const std::int64_t tokens = of.Tk + of.Tq;
    return std::max(4 * last_level_cache_bytes() / bytes_per_token(of, type) + tokens, 2 * tokens);
  }

  layers(const shape& of, skim::element type, std::int64_t tokens, const skim::tbb_executor& executor)
      : keys_(static_cast<std::size_t>(tokens * bytes_per_token(of, type) / 2)),
        values_(keys_.bytes()),
        norms_(static_cast<std::size_t>(tokens * of.Hk)),
        positions_(norms_.size()),
        scales_(has_scales(type) ? 2 * norms_.size() : 0) {
    all_ = skim::contiguous_cache({keys_.data(), {tokens, of.Hk, of.D}, type},
                                  {values_.data(), {tokens, of.Hk, of.D}, type}, tokens);
    all_.inverse_norms = norms_.data();
    all_.inverse_norms_stride = tokens;
    all_.positions = positions_.data();
    all_.positions_stride = tokens;
    if (has_scales(type)) {
      for (skim::kv_cache_tensor* const each : {&all_.k, &all_.v}) {
        each->scales = scales_.data() + (each == &all_.v ? norms_.size() : 0);
        each->scale_row_stride = of.Hk;
        each->scale_head_stride = 1;
      }
    }
    constexpr std::int64_t chunk = 256;
    executor.parallel_for((tokens + chunk - 1) / chunk, [&](std::int64_t index, unsigned) {
      const std::int64_t begin = index * chunk, count = std::min(chunk, tokens - begin);
      std::mt19937 generator(static_cast<unsigned>(index));
      std::normal_distribution<float> normal;
      std::vector<float> k(static_cast<std::size_t>(count * of.Hk * of.D)), v(k.size());
      for (float& x : k) x = normal(generator);
      for (float& x : v) x = normal(generator);
      skim::append_args append;
      append.k = skim::tensor_view<const float, 3>(k.data(), {count, of.Hk, of.D});
      append.v = skim::tensor_view<const float, 3>(v.data(), {count, of.Hk, of.D});
      append.kv = all_;
      append.kv.tokens = begin + count;
      append.position = begin;
      if (!skim::cpu::append(append, skim::serial_executor{})) std::abort();
    });
  }

  /// The next layer's cache of `tokens` tokens, whose positions are those of its slots.
  skim::kv_view next(std::int64_t tokens) {
    skim::kv_view view = next_bounded(tokens).kv;
    view.positions = nullptr;
    return view;
  }

  /// The next layer's cache with positions, and its number.
  struct bounded {
    skim::kv_cache kv;
    std::int64_t layer;
  };
  bounded next_bounded(std::int64_t tokens) {
    if (row_ + tokens > all_.capacity) row_ = 0;
    skim::kv_cache view = skim::rows(all_, row_, tokens);
    view.capacity = tokens;
    view.first_position = 0;
    row_ += tokens;
    return {view, row_ / tokens - 1};
  }
  std::int64_t count(std::int64_t tokens) const { return all_.capacity / tokens; }

 private:
  skim::buffer keys_, values_;
  std::vector<float> norms_;
  std::vector<std::int32_t> positions_;
  std::vector<float> scales_;  // of keys, then of values
  skim::kv_cache all_;         // all layers, one behind the other
  std::int64_t row_ = 0;
};

/// One set of layers for all rows of equal element type and heads; made when the first of them runs.
class layer_store {
 public:
  explicit layer_store(const skim::tbb_executor& executor) : executor_(executor) {}

  void reserve(const shape& of, skim::element type) {
    std::int64_t& tokens = sets_[key(of, type)].tokens;
    tokens = std::max(tokens, layers::tokens_wanted(of, type));
  }
  double bytes() const {
    double total = 0;
    for (const auto& [id, one] : sets_) {
      total += static_cast<double>(one.tokens) *
               static_cast<double>(bytes_per_token({0, std::get<1>(id), std::get<2>(id)}, std::get<0>(id)));
    }
    return total;
  }
  layers& get(const shape& of, skim::element type) {
    set& one = sets_[key(of, type)];
    if (!one.made) one.made = std::make_unique<layers>(of, type, one.tokens, executor_);
    return *one.made;
  }

 private:
  using name = std::tuple<skim::element, std::int64_t, std::int64_t>;
  struct set {
    std::int64_t tokens = 0;
    std::unique_ptr<layers> made;
  };
  static name key(const shape& of, skim::element type) { return {type, of.Hk, of.D}; }

  skim::tbb_executor executor_;
  std::map<name, set> sets_;
};

}  // namespace bench
