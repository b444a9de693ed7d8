// SPDX-License-Identifier: Apache-2.0
// What `check` accepts reads and writes nothing outside: calls drawn at random, up to three of their numbers absurd, memory
// exactly as large as the views reach, workspaces, states and lists exactly as large as stated. Sanitized builds see reads.
#include "support/exact_memory.hpp"

#include <skim/skim.hpp>

#include <gtest/gtest.h>

#include <functional>
#include <map>

#ifndef SKIM_TEST_STRIDE
#define SKIM_TEST_STRIDE 1
#endif

namespace {

using namespace skim_test;
using skim::element;

constexpr std::int64_t largest = std::numeric_limits<std::int64_t>::max(), smallest = -largest - 1;

/// Draws arguments, and spoils them.
class dice {
 public:
  explicit dice(unsigned seed) : random_(seed) {}

  /// In [low, high].
  std::int64_t in(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(high - low + 1));
  }
  bool one_in(std::int64_t n) { return in(1, n) == 1; }
  element type() { return static_cast<element>(in(1, 3)); }

  std::int64_t absurd() {
    static const std::int64_t numbers[] = {0,           1,
                                           -1,          2,
                                           3,           5,
                                           63,          64,
                                           65,          4096,
                                           4097,        1 << 24,
                                           largest,     smallest,
                                           -largest,    largest / 2,
                                           1 << 30,     (1 << 30) + 1,
                                           -64,         (1ll << 31),
                                           (1ll << 32), (1ll << 57),
                                           1ll << 60,   -(1ll << 57),
                                           7,           (1ll << 31) - 1,
                                           (1ll << 61), -2};
    return numbers[in(0, static_cast<std::int64_t>(std::size(numbers)) - 1)];
  }
  float absurd_real() {
    static const float numbers[] = {0,
                                    1,
                                    -1,
                                    0.5f,
                                    1e30f,
                                    3e38f,
                                    1e-45f,
                                    -1e-45f,
                                    65504,
                                    std::numeric_limits<float>::infinity(),
                                    std::numeric_limits<float>::quiet_NaN()};
    return numbers[in(0, static_cast<std::int64_t>(std::size(numbers)) - 1)];
  }

  void note(std::int64_t& field) {
    spoilers_.push_back(
        [this, &field] { field = one_in(3) && std::abs(field / 2) < largest / 4 ? field + in(-2, 2) : absurd(); });
  }
  void note(float& field) {
    spoilers_.push_back([this, &field] { field = absurd_real(); });
  }
  void note(double& field) {
    spoilers_.push_back([this, &field] { field = static_cast<double>(absurd_real()); });
  }
  void note(bool& field) {
    spoilers_.push_back([&field] { field = !field; });
  }
  template <class Enumerator, class = std::enable_if_t<std::is_enum_v<Enumerator>>>
  void note(Enumerator& field) {
    spoilers_.push_back([this, &field] { field = static_cast<Enumerator>(one_in(3) ? in(0, 255) : in(0, 4)); });
  }
  template <class T, int Rank>
  void note(skim::tensor_view<T, Rank>& view) {
    for (int axis = 0; axis < Rank; ++axis) {
      note(view.extents[axis]);
      note(view.strides[axis]);
    }
    note(view.type);
  }
  template <class Void>
  void note(skim::basic_kv_tensor<Void>& t) {
    for (std::int64_t* field : {&t.dim, &t.rows, &t.heads, &t.pages, &t.row_stride, &t.head_stride, &t.page_stride,
                                &t.dim_stride, &t.scale_row_stride, &t.scale_head_stride, &t.scale_page_stride}) {
      note(*field);
    }
    note(t.type);
  }
  template <class Void>
  void note(skim::basic_kv_view<Void>& v) {
    note(v.k);
    note(v.v);
    for (std::int64_t* field : {&v.heads, &v.tokens, &v.capacity, &v.ring_start, &v.page_size, &v.pages,
                                &v.lengths_ahead, &v.positions_stride, &v.first_position, &v.inverse_norms_stride}) {
      note(*field);
    }
    note(v.layout);
    note(v.values_in_keys);
  }
  void note(skim::retention& keep) {
    for (std::int64_t* field :
         {&keep.count, &keep.sinks, &keep.recent, &keep.every, &keep.dense_below, &keep.rows_below}) {
      note(*field);
    }
    note(keep.fraction);
  }
  void note(skim::attention_args& args) {
    note(args.q);
    note(args.out);
    note(args.bias);
    note(args.lse);
    note(args.kv);
    note(args.scale);
    note(args.soft_cap);
    note(args.mask.left);
    note(args.mask.right);
  }

  /// None to three of the numbers noted.
  void spoil() {
    for (std::int64_t n = in(0, 3); n > 0; --n) {
      spoilers_[static_cast<std::size_t>(in(0, static_cast<std::int64_t>(spoilers_.size()) - 1))]();
    }
    spoilers_.clear();
  }

 private:
  std::mt19937_64 random_;
  std::vector<std::function<void()>> spoilers_;
};

/// How many calls of an operation were refused, ran, or would have needed too much memory.
struct tally {
  std::int64_t refused = 0, ran = 0, large = 0;
};

/// Rows of heads in some order, with padding.
template <class T>
skim::tensor_view<T, 3> rows_of(dice& d, std::int64_t rows, std::int64_t heads, std::int64_t dim, element type) {
  const std::int64_t pad = d.one_in(3) ? d.in(1, 9) : 0, row = dim + pad;
  if (d.one_in(3)) return {nullptr, {rows, heads, dim}, {row, row * rows, 1}, type};
  return {nullptr, {rows, heads, dim}, {row * heads, row, 1}, type};
}

template <class T>
skim::tensor_view<T, 2> matrix_of(dice& d, std::int64_t rows, std::int64_t columns, element type) {
  const std::int64_t row = columns + (d.one_in(3) ? d.in(1, 9) : 0);
  if (rows > 0 && d.one_in(6)) return {nullptr, {rows, columns}, {-row, 1}, type};
  return {nullptr, {rows, columns}, {row, 1}, type};
}

/// A cache of any layout that `Tq` of the `tokens` belong to the chunk of.
template <class Void>
skim::basic_kv_view<Void> cache_of(dice& d, std::int64_t heads, std::int64_t tokens, std::int64_t D, std::int64_t Dv) {
  const element k = d.type(), v = d.one_in(3) ? d.type() : k;
  const std::int64_t capacity = tokens + d.in(0, 20);
  const auto rows = [&](std::int64_t n, std::int64_t dim, element type) {
    return rows_of<Void>(d, n, heads, dim, type);
  };
  skim::basic_kv_view<Void> view;
  if (d.one_in(3)) {
    const std::int64_t page = d.in(1, 17), pages = (capacity + page - 1) / page;
    const auto pool = [&](std::int64_t dim, element type) {
      const auto one = rows(page, dim, type);
      const std::int64_t step = page * heads * (dim + 9);
      return skim::tensor_view<Void, 4>(nullptr, {pages + 3, page, heads, dim},
                                        {step, one.strides[0], one.strides[1], 1}, type);
    };
    view = skim::detail::paged(pool(D, k), pool(Dv, v), nullptr, pages, tokens);
  } else if (d.one_in(2)) {
    view = skim::detail::ring(rows(capacity, D, k), rows(capacity, Dv, v), capacity > 0 ? d.in(0, capacity - 1) : 0,
                              tokens);
  } else {
    view = skim::detail::contiguous(rows(capacity, D, k), rows(capacity, Dv, v), tokens);
  }
  if (Dv <= D && d.one_in(6)) view = skim::with_values_in_keys(view, Dv);
  return view;
}

/// Memory of a cache that `check_shape` took. What is optional is there or not.
template <class Void>
void give(dice& d, exact_memory& to, skim::basic_kv_view<Void>& view, std::int64_t Tq, bool evicted,
          bool share_heads = false) {
  using tensor = skim::basic_kv_tensor<Void>;
  const bool paged = view.layout == skim::kv_layout::paged;
  const std::int64_t rows = paged ? view.page_size : view.capacity, pages = paged ? view.pages : 1;
  const auto fill = [&](tensor& t) {
    t.data = to.reach(t.type, {{pages, t.page_stride}, {rows, t.row_stride}, {view.heads, t.head_stride}, {t.dim, 1}});
  };
  fill(view.k);
  if (view.values_in_keys) {
    view.v.data = view.k.data;
  } else {
    fill(view.v);
  }
  if (paged && view.capacity > 0) {
    const std::int64_t used = view.capacity / view.page_size;
    auto* const table = to.array<std::int32_t>(used);
    for (std::int64_t i = 0; table && i < used; ++i) {  // pages of its own, or, to read, any
      const std::int64_t most = std::max<std::int64_t>(view.pages - 1, 0);
      table[i] = static_cast<std::int32_t>(std::is_const_v<Void> ? d.in(0, most) : std::min(i, most));
    }
    view.block_table = table;
  }
  const auto metadata = [&](auto*& field, std::int64_t stride) {
    using number = std::remove_const_t<std::remove_pointer_t<std::remove_reference_t<decltype(field)>>>;
    const double all = static_cast<double>(std::abs(static_cast<double>(stride))) * static_cast<double>(view.heads - 1);
    if (all > 1e6) return;
    const std::int64_t before = stride < 0 && view.heads > 1 ? -stride * (view.heads - 1) : 0;
    number* const data = to.array<number>(static_cast<std::int64_t>(all) + view.capacity);
    if (!data) return;
    field = data + before;
    for (std::int64_t h = 0; h < view.heads; ++h) {
      for (std::int64_t i = 0; i < view.capacity; ++i) {
        data[before + (view.heads > 1 ? h * stride : 0) + i] = static_cast<number>(view.capacity - i);
      }
    }
  };
  if (evicted || d.one_in(3)) metadata(view.positions, view.positions_stride);
  if (d.one_in(3)) metadata(view.inverse_norms, view.inverse_norms_stride);
  if (!share_heads && d.one_in(3)) {
    auto* const lengths = to.array<std::int32_t>(view.heads);
    for (std::int64_t h = 0; lengths && h < view.heads; ++h) {
      lengths[h] = static_cast<std::int32_t>(
          std::min<std::int64_t>(d.in(Tq, view.tokens) + view.lengths_ahead, std::numeric_limits<std::int32_t>::max()));
    }
    view.lengths = lengths;
  }
}

/// How many calls of each operation to draw.
struct draws {
  std::int64_t calls;
  unsigned seed;
};

/// Calls `body(dice, tally)`, which draws a call, spoils it, asks `check_shape`, gives it memory and runs it.
template <class Body>
void draw_calls(const char* name, draws of, const Body& body) {
  tally seen;
  for (std::int64_t i = 0; i < of.calls && !testing::Test::HasFailure(); ++i) {
    dice d(of.seed * 1000003u + static_cast<unsigned>(i));
    SCOPED_TRACE(testing::Message() << name << ", seed " << of.seed << ", call " << i);
    body(d, seen);
  }
  EXPECT_GT(seen.ran, of.calls / 10) << seen.refused << " refused, " << seen.large << " too large";
  EXPECT_GT(seen.refused, of.calls / 10);
}

constexpr std::size_t most_bytes = 1 << 21;

/// The steps that calls have in common; false where the call ends here.
template <class Op, class Args>
bool shape_is_taken(tally& seen, const Op& op, const Args& args) {
  if (op.check_shape(args)) return true;
  EXPECT_EQ(op.workspace_bytes(args, 3), 0u);
  ++seen.refused;
  return false;
}
bool is_ready(tally& seen, const exact_memory& memory, bool accepted) {
  if (!memory.given()) {
    ++seen.large;
  } else if (!accepted) {
    ++seen.refused;
  }
  return memory.given() && accepted;
}
void finish(tally& seen, const exact_memory& memory) {
  EXPECT_TRUE(memory.guards_intact());
  ++seen.ran;
}

skim::attention_args attention_of(dice& d) {
  const std::int64_t Hk = d.in(1, 4), G = d.in(1, 5), D = d.in(1, 40), Dv = d.in(1, 40), Tq = d.in(0, 20);
  const std::int64_t tokens = Tq + (d.one_in(8) ? 0 : d.in(0, 150));
  skim::attention_args args;
  args.q = rows_of<const void>(d, Tq, Hk * G, D, d.type());
  args.out = rows_of<void>(d, Tq, Hk * G, Dv, d.type());
  args.kv = cache_of<const void>(d, Hk, tokens, D, Dv);
  args.kv.positions_stride = d.one_in(2) ? 0 : args.kv.capacity;
  args.kv.inverse_norms_stride = args.kv.capacity;
  if (d.one_in(3)) args.lse = matrix_of<float>(d, Tq, Hk * G, element::f32);
  if (d.one_in(3)) args.bias = rows_of<const void>(d, d.one_in(2) ? 1 : Hk * G, Tq, tokens, d.type());
  if (d.one_in(3)) args.mask = skim::mask::window(d.in(1, 60));
  if (d.one_in(5)) args.mask = skim::mask::full();
  if (d.one_in(5)) args.soft_cap = 20;
  return args;
}

void give(dice& d, exact_memory& to, skim::attention_args& args) {
  to.give(args.q);
  to.give(args.out);
  if (args.lse.extents[0] > 0) to.give(args.lse);
  if (args.bias.extents[0] > 0) to.give(args.bias);
  give(d, to, args.kv, args.q.extents[0], false);
  if (d.one_in(4)) args.sink_logits = to.array<float>(args.q.extents[1]);
  if (d.one_in(4)) args.alibi_slopes = to.array<float>(args.q.extents[1]);
}

skim::index_lists lists_of(exact_memory& to, std::int64_t rows, std::int64_t capacity, std::int64_t block_rows) {
  skim::index_lists lists;
  lists.rows = rows;
  lists.capacity = capacity;
  lists.block_rows = block_rows;
  const double entries = static_cast<double>(rows) * static_cast<double>(capacity);
  lists.indices = to.array<std::int32_t>(entries > 1e8 ? std::int64_t{1} << 40 : rows * capacity);
  lists.counts = to.array<std::int32_t>(rows);
  return lists;
}

template <class Op>
void run_attention(dice& d, tally& seen, const Op& op, skim::attention_args args) {
  if (!shape_is_taken(seen, op, args)) return;
  exact_memory memory(most_bytes);
  const std::size_t bytes = op.workspace_bytes(args, 1);
  give(d, memory, args);
  const skim::memory workspace{memory.block(bytes), bytes};
  if (!is_ready(seen, memory, memory.given() && op.check(args).ok() && check_indices(args).ok())) return;
  const skim::serial_executor serial;
  const skim::report answer = op.run(args, {}, workspace, serial);
  char line[200];
  EXPECT_TRUE(answer.ok()) << describe(answer, line, sizeof line);
  if constexpr (!std::is_same_v<Op, skim::cpu::attention<>>) {
    const skim::index_lists lists =
        lists_of(memory, skim::list_rows(args, op.block_rows()), op.list_capacity(args), op.block_rows());
    const std::int64_t heads = args.kv.heads, columns = args.kv.tokens;
    skim::tensor_view<float, 2> scores(memory.array<float>(heads * columns), {heads, columns});
    skim::cpu::attend<> listed;
    const std::size_t scratch = listed.workspace_bytes(args, op.block_rows(), 1);
    const skim::memory room{memory.block(scratch), scratch};
    if (memory.given()) {
      EXPECT_TRUE(op.select(args, lists, {}, workspace, serial).ok());
      EXPECT_TRUE(check_indices(args, &lists).ok());
      EXPECT_TRUE(listed.run(args, lists, room, serial).ok());
      if (columns > 0) {
        EXPECT_TRUE(op.score(args, scores, {}, workspace, serial).ok());
        EXPECT_TRUE(op.choose(args, scores, lists, workspace, serial).ok());
      }
    }
  }
  finish(seen, memory);
}

void attention_calls(draws of) {
  draw_calls("dense attention", of, [](dice& d, tally& seen) {
    skim::attention_args args = attention_of(d);
    d.note(args);
    d.spoil();
    run_attention(d, seen, skim::cpu::attention<>{}, args);
  });
  draw_calls("QUOKA", of, [](dice& d, tally& seen) {
    skim::attention_args args = attention_of(d);
    skim::quoka policy;
    policy.queries.choice = static_cast<skim::query_choice>(d.in(0, 6));
    const bool own = policy.queries.choice == skim::query_choice::needed ||
                     (policy.queries.choice > skim::query_choice::farthest_point && d.one_in(2));
    policy.queries.rows = own ? skim::query_rows::own : skim::query_rows::group_means;
    policy.queries.n = d.in(1, 9);
    policy.queries.samples = d.one_in(3) ? d.in(1, 70) : 64;
    policy.similarity = static_cast<skim::similarity>(d.in(0, 2));
    policy.reduce = static_cast<skim::reduction>(policy.similarity == skim::similarity::standardised ? 0 : d.in(0, 1));
    policy.smooth = 2 * d.in(0, 31) + 1;
    policy.keep = d.one_in(4)   ? skim::retention::preset(d.in(1, 60))
                  : d.one_in(3) ? skim::retention::share(0.3)
                                : skim::retention::budget(d.in(1, 60));
    if (d.one_in(2)) policy.keep = policy.keep.dense_under(d.in(0, 60));
    if (d.one_in(3)) policy.keep = policy.keep.for_every(d.in(1, 9));
    d.note(args);
    d.note(policy.keep);
    d.note(policy.queries.n);
    d.note(policy.queries.choice);
    d.note(policy.queries.rows);
    d.note(policy.queries.samples);
    d.note(policy.similarity);
    d.note(policy.reduce);
    d.note(policy.smooth);
    d.spoil();
    run_attention(d, seen, skim::cpu::attention<skim::quoka>{policy}, args);
  });
  draw_calls("sink window", of, [](dice& d, tally& seen) {
    skim::attention_args args = attention_of(d);
    skim::sink_window policy{skim::retention::budget(d.in(4, 60), d.in(0, 4))};
    d.note(args);
    d.note(policy.keep);
    d.spoil();
    run_attention(d, seen, skim::cpu::attention<skim::sink_window>{policy}, args);
  });
}

void append_calls(draws of) {
  draw_calls("append", of, [](dice& d, tally& seen) {
    const std::int64_t Hk = d.in(1, 4), D = d.in(1, 40), Dv = d.in(1, 40), Tq = d.in(0, 20);
    skim::append_args args;
    args.kv = cache_of<void>(d, Hk, Tq + d.in(0, 50), D, Dv);
    args.kv.positions_stride = d.one_in(2) ? 0 : args.kv.capacity;
    args.kv.inverse_norms_stride = args.kv.capacity;
    args.k = rows_of<const void>(d, Tq, Hk, D, d.type());
    args.v = rows_of<const void>(d, Tq, Hk, Dv, d.type());
    d.note(args.k);
    d.note(args.v);
    d.note(args.kv);
    d.note(args.position);
    d.spoil();
    exact_memory memory(most_bytes);
    if (!check_shape(args)) {
      ++seen.refused;
      return;
    }
    memory.give(args.k);
    memory.give(args.v);
    give(d, memory, args.kv, args.k.extents[0], false);
    if (!is_ready(seen, memory, memory.given() && check_indices(args).ok())) return;
    EXPECT_TRUE(skim::cpu::append(args, skim::serial_executor{}).ok());
    finish(seen, memory);
  });
}

template <class Policy>
void run_eviction(dice& d, tally& seen, Policy policy, skim::eviction_args args) {
  const skim::cpu::eviction<Policy> op{policy};
  if (!op.check_shape(args)) {
    EXPECT_EQ(op.workspace_bytes(args, 3), 0u);
    EXPECT_EQ(op.state_bytes(args), 0u);
    ++seen.refused;
    return;
  }
  exact_memory memory(most_bytes);
  give(d, memory, args.kv, args.new_tokens, true, args.share_heads);
  if (op.needs().lse) {
    memory.give(args.attended.q);
    memory.give(args.attended.lse);
    if (args.attended.bias.extents[0] > 0) memory.give(args.attended.bias);
  }
  if (d.one_in(3) && !args.share_heads) {
    std::int32_t* const budgets = memory.array<std::int32_t>(args.kv.heads);
    const skim::retention keep = kept_by(policy, args);
    for (std::int64_t h = 0; budgets && h < args.kv.heads; ++h) {
      budgets[h] = static_cast<std::int32_t>(d.in(std::max<std::int64_t>(1, keep.sinks + keep.recent), keep.count));
    }
    args.budgets = budgets;
  }
  if (args.how == skim::compaction::pages) args.block_table = const_cast<std::int32_t*>(args.kv.block_table);
  const std::size_t bytes = op.workspace_bytes(args, 1), kept = op.state_bytes(args);
  const skim::memory workspace{memory.block(bytes), bytes}, state{memory.block(kept), kept};
  const skim::index_lists lists = lists_of(memory, skim::list_rows(args), op.list_capacity(args), 0);
  if (!is_ready(seen, memory,
                memory.given() && op.check(args).ok() && check_indices(args, kept_by(policy, args), op.needs()).ok()))
    return;
  const skim::serial_executor serial;
  EXPECT_TRUE(op.reset(args, state, serial).ok());
  char line[200];
  const skim::report answer = op.run(args, lists, state, workspace, serial);
  EXPECT_TRUE(answer.ok()) << describe(answer, line, sizeof line);
  finish(seen, memory);
}

template <class Policy>
void eviction_calls(const char* name, draws of) {
  draw_calls(name, of, [](dice& d, tally& seen) {
    const std::int64_t Hk = d.in(1, 4), G = d.in(1, 4), D = d.in(1, 40), Dv = d.in(1, 40), Tq = d.in(0, 12);
    skim::eviction_args args;
    args.kv = cache_of<void>(d, Hk, Tq + d.in(0, 90), D, Dv);
    args.kv.positions_stride = args.kv.inverse_norms_stride = args.kv.capacity;
    args.new_tokens = Tq;
    args.how = static_cast<skim::compaction>(d.in(0, args.kv.layout == skim::kv_layout::paged ? 2 : 1));
    args.share_heads = args.how == skim::compaction::pages || d.one_in(4);
    args.attended.q = rows_of<const void>(d, Tq, Hk * G, D, d.type());
    args.attended.lse = matrix_of<float>(d, Tq, Hk * G, element::f32);
    Policy policy{};
    const std::int64_t page = args.how == skim::compaction::pages ? std::max<std::int64_t>(args.kv.page_size, 1) : 1;
    skim::retention& keep = [&]() -> skim::retention& {
      if constexpr (skim::detail::has<skim::detail::keep_member, Policy>) {
        return policy.keep;
      } else {
        return policy.base.keep;
      }
    }();
    keep = skim::retention::budget(page * d.in(4, 40) + 32 / page * page, d.in(0, 2), d.in(0, 1));
    if constexpr (skim::detail::has<skim::detail::smooth_member, Policy>) {
      policy.smooth = d.one_in(2) ? 1 : 2 * d.in(0, 31) + 1;
      d.note(policy.smooth);
    }
    d.note(args.kv);
    d.note(args.attended.q);
    d.note(args.attended.lse);
    d.note(args.attended.scale);
    d.note(args.attended.soft_cap);
    d.note(args.attended.mask.left);
    d.note(args.new_tokens);
    d.note(args.how);
    if (d.one_in(3)) d.note(args.share_heads);
    d.note(keep);
    d.spoil();
    run_eviction(d, seen, policy, args);
  });
}

void evictor_calls(draws of) {
  eviction_calls<skim::keydiff<>>("KeyDiff", of);
  eviction_calls<skim::keydiff<skim::anchor::mean>>("KeyDiff of the mean", of);
  eviction_calls<skim::h2o>("H2O", of);
  eviction_calls<skim::tova>("TOVA", of);
  eviction_calls<skim::snapkv>("SnapKV", of);
  eviction_calls<skim::sink_window>("sink window", of);
  eviction_calls<skim::random_tokens>("random tokens", of);
  eviction_calls<skim::caote<skim::snapkv>>("CAOTE", of);
  eviction_calls<skim::fast_caote<skim::keydiff<>>>("FastCAOTE", of);
}

skim::ffn_args ffn_of(dice& d) {
  const std::int64_t M = d.in(0, 40), width = d.in(1, 70), f = d.in(1, 70);
  const element type = d.type();
  skim::ffn_args args;
  args.x = matrix_of<const void>(d, M, width, d.type());
  args.up = matrix_of<const void>(d, f, width, type);
  if (d.one_in(2)) args.gate = matrix_of<const void>(d, f, width, type);
  args.down = matrix_of<const void>(d, f, width, type);
  args.out = matrix_of<void>(d, M, width, d.type());
  if (d.one_in(2)) args.block_tokens = d.in(1, 20);
  args.first_block = d.in(0, 2);
  args.last = d.one_in(2);
  return args;
}

void note(dice& d, skim::ffn_args& args) {
  d.note(args.x);
  d.note(args.gate);
  d.note(args.up);
  d.note(args.down);
  d.note(args.out);
  d.note(args.act);
  d.note(args.block_tokens);
  d.note(args.first_block);
  d.note(args.prompt_count);
}

template <class Policy, class GivePolicy>
void run_ffn(tally& seen, Policy policy, skim::ffn_args args, const GivePolicy& give_policy) {
  if (!shape_is_taken(seen, skim::cpu::ffn<Policy>{policy}, args)) return;
  exact_memory memory(most_bytes);
  memory.give(args.x);
  memory.give(args.up);
  if (args.gate.extents[0] > 0) memory.give(args.gate);
  memory.give(args.down);
  memory.give(args.out);
  give_policy(memory, policy);
  const skim::cpu::ffn<Policy> op{policy};
  const std::size_t bytes = op.workspace_bytes(args, 1), kept = op.state_bytes(args);
  const skim::memory workspace{memory.block(bytes), bytes}, state{memory.block(kept), kept};
  if (!is_ready(seen, memory, memory.given() && op.check(args).ok())) return;
  const skim::serial_executor serial;
  EXPECT_TRUE(op.reset(args, state, serial).ok());
  EXPECT_TRUE(op.run(args, state, workspace, serial).ok());
  finish(seen, memory);
}

template <class Policy>
void plain_ffn_calls(const char* name, draws of) {
  draw_calls(name, of, [](dice& d, tally& seen) {
    skim::ffn_args args = ffn_of(d);
    Policy policy{};
    note(d, args);
    if constexpr (!std::is_same_v<Policy, skim::all_neurons>) {
      if (d.one_in(2)) policy.keep.count = 0, policy.keep.fraction = 0.4;
      d.note(policy.keep.count);
      d.note(policy.keep.fraction);
    }
    d.spoil();
    run_ffn(seen, policy, args, [](exact_memory&, Policy&) {});
  });
}

void ffn_calls(draws of) {
  plain_ffn_calls<skim::all_neurons>("dense FFN", of);
  plain_ffn_calls<skim::oracle>("oracle", of);
  plain_ffn_calls<skim::static_set>("static set", of);
  plain_ffn_calls<skim::random_neurons>("random neurons", of);
  draw_calls("FastForward", of, [](dice& d, tally& seen) {
    skim::ffn_args args = ffn_of(d);
    const std::int64_t width = args.x.extents[1], f = args.up.extents[0], rank = d.in(1, 20);
    skim::fastforward policy;
    policy.predictor.query = {nullptr, {width}, d.type()};
    policy.predictor.w1 = matrix_of<const void>(d, width, rank, d.type());
    policy.predictor.w2 = matrix_of<const void>(d, rank, f, d.type());
    if (d.one_in(2)) {
      const element type = d.type();
      policy.compensator.c1 = matrix_of<const void>(d, width, 8, type);
      policy.compensator.c2 = matrix_of<const void>(d, 8, width, type);
    }
    note(d, args);
    d.note(policy.keep.count);
    d.note(policy.keep.fraction);
    d.note(policy.predictor.query);
    d.note(policy.predictor.w1);
    d.note(policy.predictor.w2);
    d.note(policy.compensator.c1);
    d.note(policy.compensator.c2);
    d.spoil();
    run_ffn(seen, policy, args, [](exact_memory& memory, skim::fastforward& p) {
      memory.give(p.predictor.query);
      memory.give(p.predictor.w1);
      memory.give(p.predictor.w2);
      if (p.compensator.c1.extents[1] != 0) {
        memory.give(p.compensator.c1);
        memory.give(p.compensator.c2);
      }
    });
  });
  draw_calls("linear", of, [](dice& d, tally& seen) {
    const std::int64_t M = d.in(0, 40), n_in = d.in(1, 70), n_out = d.in(1, 70);
    skim::linear_args args;
    args.x = matrix_of<const void>(d, M, n_in, d.type());
    args.weight = matrix_of<const void>(d, n_out, n_in, d.type());
    args.out = matrix_of<void>(d, M, n_out, d.type());
    if (d.one_in(2)) args.bias = {nullptr, {n_out}, d.type()};
    d.note(args.x);
    d.note(args.weight);
    d.note(args.bias);
    d.note(args.out);
    d.spoil();
    const skim::cpu::linear<> op;
    if (!shape_is_taken(seen, op, args)) return;
    exact_memory memory(most_bytes);
    memory.give(args.x);
    memory.give(args.weight);
    memory.give(args.out);
    if (args.bias.extents[0] > 0) memory.give(args.bias);
    const std::size_t bytes = op.workspace_bytes(args, 1);
    const skim::memory workspace{memory.block(bytes), bytes};
    if (!is_ready(seen, memory, memory.given() && op.check(args).ok())) return;
    EXPECT_TRUE(op.run(args, workspace, skim::serial_executor{}).ok());
    finish(seen, memory);
  });
}

constexpr draws few{2000 / SKIM_TEST_STRIDE, 1}, many{100000, 2};

TEST(Reach, OfAttention) {
  attention_calls(few);
}
TEST(Reach, OfAppend) {
  append_calls(few);
}
TEST(Reach, OfEviction) {
  evictor_calls(few);
}
TEST(Reach, OfTheFfn) {
  ffn_calls(few);
}

TEST(exhaustive_reach, of_attention) {
  attention_calls(many);
}
TEST(exhaustive_reach, of_append) {
  append_calls(many);
}
TEST(exhaustive_reach, of_eviction) {
  evictor_calls(many);
}
TEST(exhaustive_reach, of_the_ffn) {
  ffn_calls(many);
}

}  // namespace
