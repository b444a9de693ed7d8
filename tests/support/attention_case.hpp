// SPDX-License-Identifier: Apache-2.0
/// \file One attention call to test, described by plain values, and the memory that it needs.
#pragma once

#include "strided_tensor.hpp"

#include <skim/attention.hpp>

#include <cmath>
#include <cstring>
#include <memory>
#include <ostream>

namespace skim_test {

enum class positions_kind { from_zero, from_first, holes, shared_holes, shuffled };
enum class lists_kind { none, empty, third, every };
enum class bias_kind { none, shared, by_head };

struct attention_case {
  skim::element kv_type = skim::element::f32, q_type = skim::element::f32, out_type = skim::element::f32;
  skim::element v_type = skim::element::none;  // none: as kv_type
  std::int64_t D = 64, Dv = 64, Tq = 7, Tk = 40, G = 1, Hk = 1;
  memory_order kv_order = memory_order::token_major, q_order = memory_order::token_major;
  std::int64_t padding = 0, shift = 0;
  skim::kv_layout layout = skim::kv_layout::contiguous;
  std::int64_t page_size = 1;
  skim::mask mask = skim::mask::causal();
  float scale = 0, soft_cap = 0;
  bool sinks = false, lse = false, lengths = false, inverse_norms = false;
  positions_kind positions = positions_kind::from_zero;
  lists_kind lists = lists_kind::none;
  std::int64_t block_rows = 0;  // of the lists
  std::int64_t sequences = 1;
  bool batch = false;  // sequences of one pool, by `kv_batch`
  bool dot_pairs = false;
  bool values_in_keys = false, scales = false;
  bias_kind bias = bias_kind::none;  // of q's type
  bool slopes = false;

  std::int64_t Hq() const { return Hk * G; }
  skim::element type_of_v() const { return v_type == skim::element::none ? kv_type : v_type; }
};

inline std::ostream& operator<<(std::ostream& to, const attention_case& c) {
  const char* const orders[] = {"token major", "head major", "interleaved"};
  const char* const positions[] = {"from zero", "from first", "holes", "shared holes", "shuffled"};
  const char* const lists[] = {"none", "empty", "third", "every"};
  const char* const biases[] = {"no bias", "one bias", "a bias for each head"};
  to << "k " << to_string(c.kv_type) << ", v " << to_string(c.type_of_v()) << ", q " << to_string(c.q_type) << ", out "
     << to_string(c.out_type) << ", D " << c.D << ", Dv " << c.Dv << ", Tq " << c.Tq << ", Tk " << c.Tk << ", G " << c.G
     << ", Hk " << c.Hk << ", kv " << orders[static_cast<int>(c.kv_order)] << ", q "
     << orders[static_cast<int>(c.q_order)] << ", padding " << c.padding << ", shift " << c.shift << ", "
     << to_string(c.layout) << " by " << c.page_size << ", mask " << c.mask.left << " " << c.mask.right << ", scale "
     << c.scale << ", soft cap " << c.soft_cap << ", " << biases[static_cast<int>(c.bias)];
  if (c.slopes) to << ", slopes";
  if (c.sinks) to << ", sinks";
  if (c.lse) to << ", lse";
  if (c.lengths) to << ", lengths";
  if (c.inverse_norms) to << ", inverse norms";
  if (c.dot_pairs) to << ", dot pairs";
  if (c.values_in_keys) to << ", values in keys";
  if (c.scales) to << ", scales";
  return to << ", positions " << positions[static_cast<int>(c.positions)] << ", lists "
            << lists[static_cast<int>(c.lists)] << " by " << c.block_rows << " rows, "
            << (c.batch ? "a batch of " : "sequences ") << c.sequences;
}

/// Blocks want whole ones of everything, integers their scales.
inline void fit_stored_types(attention_case& c) {
  const auto has = [&](skim::element type) { return c.kv_type == type || c.type_of_v() == type; };
  if (has(skim::element::int8)) c.scales = true;
  if (!has(skim::element::q8_0)) return;
  c.D = (c.D + 31) / 32 * 32;
  c.Dv = (c.Dv + 31) / 32 * 32;
  c.padding = (c.padding + 31) / 32 * 32;
  c.shift *= 32;
}

/// Standard normal rows out of one table for each element type: drawing and rounding millions of values would take longer
/// than the kernels.
class normal_rows {
 public:
  explicit normal_rows(unsigned seed) : offsets_(seed) {}

  /// `length` elements of `type`.
  const void* row(std::int64_t length, skim::element type) {
    static const tables all;
    const std::size_t first = offsets_() % (tables::size - static_cast<std::size_t>(length));
    if (type == skim::element::f32) return all.f32.data() + first;
    if (type == skim::element::f16) return all.f16.data() + first;
    return all.bf16.data() + first;
  }

 private:
  struct tables {
    static constexpr std::size_t size = 1 << 16;
    std::vector<float> f32 = normal_values(size, 7);
    std::vector<skim::f16> f16{size};
    std::vector<skim::bf16> bf16{size};

    tables() {
      for (std::size_t i = 0; i < size; ++i) {
        f16[i] = skim::from_float<skim::f16>(f32[i]);
        bf16[i] = skim::from_float<skim::bf16>(f32[i]);
      }
    }
  };

  std::mt19937 offsets_;
};

/// The memory of one call. Everything that no query may read is NaN.
class attention_inputs {
 public:
  explicit attention_inputs(const attention_case& c, unsigned seed = 1)
      : case_(c),
        rows_(seed),
        random_(seed),
        offsets_(offsets_of(c)),
        q_(tensor_shape(c, c.q_type, c.D)),
        out_(tensor_shape(c, c.out_type, c.Dv)),
        lse_({offsets_.back(), 1, c.Hq(), skim::element::f32, memory_order::token_major, c.padding, c.shift}),
        bias_(bias_shape(c)) {
    for (std::int64_t t = 0; t < offsets_.back(); ++t) {
      for (std::int64_t h = 0; h < c.Hq(); ++h) write(q_.view(), t, h);
    }
    for (std::int64_t h = 0; h < c.Hq(); ++h) {
      sinks_.push_back(*static_cast<const float*>(rows_.row(1, skim::element::f32)));
      slopes_.push_back(std::exp2(-static_cast<float>(2 + h % 5)));  // ALiBi's are powers of two
    }
    lengths_.resize(static_cast<std::size_t>(c.sequences * c.Hk));
    if (c.batch) caches_.push_back(std::make_unique<cache_storage>(storage_shape(pool_capacity()), random_()));
    std::int64_t first_page = 0;
    for (std::int64_t s = 0; s < c.sequences; ++s) {
      add_sequence(s, first_page);
      if (c.batch) first_page += writable(s).capacity / c.page_size;
    }
    views_.assign(writable_.begin(), writable_.end());
    if (c.batch) make_batch();
    if (c.bias != bias_kind::none) fill_bias();
    make_lists();
  }
  attention_inputs(const attention_inputs&) = delete;
  attention_inputs& operator=(const attention_inputs&) = delete;

  skim::attention_args args() {
    skim::attention_args args;
    args.q = q_.view();
    args.out = out_.view();
    args.kv = views_[0];
    if (case_.batch) {
      args.kv = pool_;
      args.batch = batch_;
    } else if (case_.sequences > 1) {
      args.sequences = views_.data();
      args.offsets = offsets_.data();
      args.sequence_count = case_.sequences;
    }
    args.mask = case_.mask;
    args.scale = case_.scale;
    args.soft_cap = case_.soft_cap;
    if (case_.sinks) args.sink_logits = sinks_.data();
    if (case_.slopes) args.alibi_slopes = slopes_.data();
    if (case_.bias != bias_kind::none) args.bias = bias_.view();
    if (case_.lse) args.lse = lse_view();
    return args;
  }

  skim::tensor_view<float, 2> lse_view() {
    const auto all = lse_.view();
    return {static_cast<float*>(all.data), {all.extents[0], all.extents[2]}, {all.strides[0], 1}};
  }

  /// Null where the case reads every key.
  const skim::index_lists* lists() const { return case_.lists == lists_kind::none ? nullptr : &lists_; }

  /// One sequence's cache, as a call of several sequences reads it, and to write to.
  skim::kv_view& view(std::int64_t s) { return views_[static_cast<std::size_t>(s)]; }
  const skim::kv_cache& writable(std::int64_t s) const { return writable_[static_cast<std::size_t>(s)]; }
  /// Its memory.
  const cache_storage& cache(std::int64_t s) const { return *caches_[case_.batch ? 0 : static_cast<std::size_t>(s)]; }
  strided_tensor& q() { return q_; }
  strided_tensor& out() { return out_; }
  strided_tensor& lse() { return lse_; }
  strided_tensor& bias() { return bias_; }

 private:
  static std::vector<std::int64_t> offsets_of(const attention_case& c) {
    std::vector<std::int64_t> offsets{0};
    for (std::int64_t s = 0; s < c.sequences; ++s) offsets.push_back(offsets.back() + chunk(c, s));
    return offsets;
  }
  // Of several sequences the second has an empty chunk, the others differ in both lengths.
  static std::int64_t chunk(const attention_case& c, std::int64_t s) {
    return s == 0 ? c.Tq : s == 1 ? 0 : c.Tq / s + 1;
  }
  static std::int64_t past(const attention_case& c, std::int64_t s) { return c.Tk / (s + 1); }
  std::int64_t tokens(std::int64_t s) const { return chunk(case_, s) + past(case_, s); }
  std::int64_t most_tokens() const {
    std::int64_t most = 0;
    for (std::int64_t s = 0; s < case_.sequences; ++s) most = std::max(most, tokens(s));
    return most;
  }
  std::int64_t page() const { return case_.layout == skim::kv_layout::paged ? case_.page_size : 1; }
  std::int64_t capacity(std::int64_t tokens) const { return (tokens + 2 + page()) / page() * page(); }
  std::int64_t pool_capacity() const {
    std::int64_t all = 0;
    for (std::int64_t s = 0; s < case_.sequences; ++s) all += capacity(tokens(s));
    return all;
  }

  strided_tensor::shape tensor_shape(const attention_case& c, skim::element type, std::int64_t dim) const {
    return {offsets_.back(), c.Hq(), dim, type, c.q_order, c.padding, c.shift};
  }
  strided_tensor::shape bias_shape(const attention_case& c) const {
    if (c.bias == bias_kind::none) return {};
    const std::int64_t heads = c.bias == bias_kind::by_head ? c.Hq() : 1;
    return {heads, offsets_.back(), most_tokens(), c.q_type, memory_order::token_major, c.padding, c.shift};
  }

  void write(const skim::tensor_view<void, 3>& to, std::int64_t t, std::int64_t h) {
    const std::size_t bytes = static_cast<std::size_t>(skim::bytes_of(to.type, to.extents[2]));
    if (bytes > 0) std::memcpy(to.at(t, h), rows_.row(to.extents[2], to.type), bytes);
  }

  cache_shape storage_shape(std::int64_t capacity) const {
    const attention_case& c = case_;
    cache_shape shape;
    shape.heads = c.Hk;
    shape.D = c.D;
    shape.Dv = c.Dv;
    shape.type = c.kv_type;
    shape.v_type = c.v_type;
    shape.layout = c.layout;
    shape.order = c.kv_order;
    shape.padding = c.padding;
    shape.shift = c.shift;
    shape.positions = c.positions != positions_kind::from_zero && c.positions != positions_kind::from_first;
    shape.inverse_norms = c.inverse_norms;
    shape.values_in_keys = c.values_in_keys;
    shape.scales = c.scales;
    shape.page_size = page();
    shape.capacity = capacity;
    return shape;
  }

  void add_sequence(std::int64_t s, std::int64_t first_page) {
    const attention_case& c = case_;
    const std::int64_t Tq = chunk(c, s), Tk = past(c, s);
    if (!c.batch) {
      cache_shape shape = storage_shape(capacity(Tq + Tk));
      shape.ring_start = c.layout == skim::kv_layout::ring ? shape.capacity - 1 - (Tq + Tk) / 2 : 0;
      caches_.push_back(std::make_unique<cache_storage>(shape, random_()));
    }
    skim::kv_cache kv = caches_.back()->view(Tq + Tk);
    if (c.batch) {
      kv.block_table += first_page;
      kv.capacity = capacity(Tq + Tk);
    }
    if (c.positions == positions_kind::from_first) kv.first_position = 1000;
    if (c.positions == positions_kind::shared_holes) kv.positions_stride = 0;
    if (c.lengths) {
      std::int32_t* const lengths = lengths_.data() + s * c.Hk;
      for (std::int64_t h = 0; h < c.Hk; ++h) lengths[h] = static_cast<std::int32_t>(Tq + Tk * (c.Hk - h) / c.Hk);
      kv.lengths = lengths;
    }
    writable_.push_back(kv);
    for (std::int64_t h = 0; h < c.Hk; ++h) fill_head(kv, h);
  }

  void make_batch() {
    pool_ = views_[0];
    pool_.block_table = nullptr;  // each sequence has its own
    pool_.tokens = most_tokens();
    pool_.capacity = capacity(pool_.tokens);
    batch_.sequences = case_.sequences;
    batch_.table_stride = pool_.capacity / case_.page_size + 1;
    for (std::int64_t s = 0; s < case_.sequences; ++s) {
      const skim::kv_view& kv = view(s);
      const std::size_t next = static_cast<std::size_t>((s + 1) * batch_.table_stride);
      tables_.insert(tables_.end(), kv.block_table, kv.block_table + kv.capacity / case_.page_size);
      tables_.resize(next, -1);
      tokens_.push_back(static_cast<std::int32_t>(kv.tokens));
      batch_.most_rows = std::max(batch_.most_rows, chunk(case_, s));
    }
    row_offsets_.assign(offsets_.begin(), offsets_.end());
    batch_.block_tables = tables_.data();
    batch_.tokens = tokens_.data();
    batch_.offsets = row_offsets_.data();
  }

  void fill_head(const skim::kv_cache& kv, std::int64_t h) {
    std::vector<std::int32_t> places(static_cast<std::size_t>(kv.length(h)));
    std::iota(places.begin(), places.end(), 0);
    if (case_.positions == positions_kind::shuffled) std::shuffle(places.begin(), places.end(), random_);
    for (std::int64_t slot = 0; slot < kv.length(h); ++slot) {
      copy_row(kv, kv.k, h, slot);
      if (!kv.values_in_keys) copy_row(kv, kv.v, h, slot);
      const std::int32_t place = places[static_cast<std::size_t>(slot)];
      const bool holes = case_.positions != positions_kind::shuffled;
      const std::int32_t position = holes ? 2 * place + 5 + (place / 3 + static_cast<std::int32_t>(h)) % 2 : place;
      const std::int64_t row = kv.metadata_row(slot);
      if (kv.positions && (h == 0 || kv.positions_stride > 0)) kv.positions[h * kv.positions_stride + row] = position;
      if (kv.inverse_norms) kv.inverse_norms[h * kv.inverse_norms_stride + row] = inverse_norm(kv, h, slot);
    }
  }

  void copy_row(const skim::kv_cache& kv, const skim::kv_cache_tensor& tensor, std::int64_t h, std::int64_t slot) {
    const bool has_table = !tensor.scales && tensor.type <= skim::element::bf16;
    if (!has_table) {
      write_row(kv, tensor, h, slot, static_cast<const float*>(rows_.row(tensor.dim, skim::element::f32)));
      return;
    }
    std::memcpy(kv.row_address(tensor, h, slot), rows_.row(tensor.dim, tensor.type),
                static_cast<std::size_t>(skim::bytes_of(tensor.type, tensor.dim)));
  }

  static float inverse_norm(const skim::kv_view& kv, std::int64_t h, std::int64_t slot) {
    const skim::stored_row row = kv.row(kv.k, h, slot);
    double squares = 0;
    for (std::int64_t d = 0; d < kv.k.dim; ++d) {
      const double value =
          static_cast<double>(skim::load_element(row.data, row.type, d)) * static_cast<double>(row.scale);
      squares += value * value;
    }
    return squares > 0 ? static_cast<float>(1 / std::sqrt(squares)) : 0.0f;
  }

  /// Of the tokens that a sequence has; behind them is NaN. Every seventh entry hides its key, and every eleventh row hides
  /// all keys.
  void fill_bias() {
    const float hides = -std::numeric_limits<float>::infinity();
    const auto bias = bias_.view();
    for (std::int64_t s = 0; s < case_.sequences; ++s) {
      for (std::int64_t t = offsets_[static_cast<std::size_t>(s)]; t < offsets_[static_cast<std::size_t>(s + 1)]; ++t) {
        for (std::int64_t h = 0; h < bias.extents[0]; ++h) {
          const void* const values = rows_.row(tokens(s), bias.type);
          for (std::int64_t slot = 0; slot < tokens(s); ++slot) {
            const bool hidden = random_() % 7 == 0 || t % 11 == 4;
            skim::store_element(bias.at(h, t), bias.type, slot,
                                hidden ? hides : skim::load_element(values, bias.type, slot));
          }
        }
      }
    }
  }

  void make_lists() {
    const skim::attention_args call = args();
    lists_.block_rows = case_.lists == lists_kind::none ? 0 : case_.block_rows;
    lists_.rows = skim::list_rows(call, lists_.block_rows);
    lists_.capacity = skim::longest_past(call, lists_.block_rows) + 3;  // longer than any list
    indices_.assign(static_cast<std::size_t>(lists_.rows * lists_.capacity), -1);
    counts_.assign(static_cast<std::size_t>(lists_.rows), 0);
    lists_.indices = indices_.data();
    lists_.counts = counts_.data();
    if (case_.lists == lists_kind::none || case_.lists == lists_kind::empty) return;
    skim::for_each_block(call, lists_.block_rows, [&](const skim::attention_sequence& block, std::int64_t index) {
      for (std::int64_t head = 0; head < case_.Hk; ++head) {
        const std::int64_t r = index * case_.Hk + head;
        for (std::int64_t slot = 0; slot < block.past(head); ++slot) {
          if (case_.lists == lists_kind::third && random_() % 3 != 0) continue;
          lists_.row(r)[lists_.counts[r]++] = static_cast<std::int32_t>(slot);
        }
      }
    });
  }

  attention_case case_;
  normal_rows rows_;
  std::mt19937 random_;
  std::vector<std::int64_t> offsets_;
  strided_tensor q_, out_, lse_, bias_;
  std::vector<std::unique_ptr<cache_storage>> caches_;
  std::vector<skim::kv_cache> writable_;
  std::vector<skim::kv_view> views_;
  std::vector<float> sinks_, slopes_;
  std::vector<std::int32_t> lengths_, indices_, counts_;
  skim::index_lists lists_;
  skim::kv_view pool_;
  skim::kv_batch batch_;
  std::vector<std::int32_t> tables_, tokens_, row_offsets_;
};

}  // namespace skim_test
