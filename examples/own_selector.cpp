// SPDX-License-Identifier: Apache-2.0
// A selector policy of one's own: every n-th past key, and the most recent ones.
#include <skim/reference/attention.hpp>
#include <skim/skim.hpp>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

/// The members that skim/cpu/selector.hpp asks for. The kernel does the rest: gathering, masks, threads.
struct every_nth {
  std::int64_t n = 16, recent = 128;

  skim::report check(const skim::attention_args&) const {
    if (n < 1) return {skim::status::bad_value, skim::path::none, "n", n, 1, "at least"};
    if (recent < 0) return {skim::status::bad_value, skim::path::none, "recent", recent, 0, "at least"};
    return {};
  }
  std::int64_t list_capacity(const skim::attention_args& args) const {
    std::int64_t longest = 0;
    for (std::int64_t s = 0; s < skim::sequence_count(args); ++s) {
      const std::int64_t Tk = skim::sequence_at(args, s).Tk();
      longest = std::max(longest, std::min(Tk, Tk / n + 1 + recent));
    }
    return longest;
  }
  std::size_t workspace_bytes(const skim::attention_args&, unsigned) const { return 0; }

  template <class Executor>
  void select(const skim::attention_args& args, const skim::index_lists& lists, skim::memory, skim::memory,
              const Executor& executor) const {
    const std::int64_t heads = skim::first_view(args).heads;
    executor.parallel_for(lists.rows, [&](std::int64_t row, unsigned) {
      const skim::attention_sequence sequence = skim::sequence_at(args, row / heads);
      const std::int64_t past = sequence.kv->length(row % heads) - sequence.Tq;
      std::int32_t count = 0;
      for (std::int64_t slot = 0; slot < past; ++slot) {
        if (slot % n == 0 || slot >= past - recent) lists.row(row)[count++] = static_cast<std::int32_t>(slot);
      }
      lists.counts[row] = count;
    });
  }
};

int main() {
  constexpr std::int64_t Tk = 2000, Tq = 32, Hq = 6, Hk = 2, D = 64;
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> q(Tq * Hq * D), out(q.size()), keys((Tk + Tq) * Hk * D), values(keys.size());
  for (auto* tensor : {&q, &keys, &values}) {
    for (float& x : *tensor) x = normal(generator);
  }
  skim::attention_args args;
  args.q = skim::tensor_view<const float, 3>(q.data(), {Tq, Hq, D});
  args.out = skim::tensor_view<float, 3>(out.data(), {Tq, Hq, D});
  args.kv = skim::contiguous_kv({keys.data(), {Tk + Tq, Hk, D}, skim::element::f32},
                                {values.data(), {Tk + Tq, Hk, D}, skim::element::f32}, Tk + Tq);

  const skim::cpu::attention op{every_nth{16, 128}};
  struct alignas(skim::memory_alignment) block {
    char bytes[skim::memory_alignment];
  };
  std::vector<block> workspace(op.workspace_bytes(args, 1) / sizeof(block) + 1);
  const skim::memory scratch{workspace.data(), workspace.size() * sizeof(block)};
  std::vector<std::int32_t> indices(Hk * op.list_capacity(args)), counts(Hk);
  const skim::index_lists lists{indices.data(), counts.data(), Hk, op.list_capacity(args)};
  if (!op.select(args, lists, {}, scratch, skim::serial_executor{})) return 1;  // the choice alone, to look at
  if (!op.run(args, {}, scratch, skim::serial_executor{})) return 1;            // choice and attention

  std::vector<double> exact(out.size());
  skim::reference::attend(args, &lists, {exact.data(), {Tq, Hq, D}});
  double worst = 0;
  for (std::size_t i = 0; i < out.size(); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(out[i]) - exact[i]));
  std::printf("%d of %d past keys read; largest difference to the reference on the same keys: %.1e\n",
              static_cast<int>(counts[0]), static_cast<int>(Tk), worst);
  return check_indices(args, &lists) && worst < 1e-5 ? 0 : 1;
}
