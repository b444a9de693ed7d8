// SPDX-License-Identifier: Apache-2.0
// Two selector policies of one's own: one scores keys and skim takes the highest, one names the keys itself.
#include <skim/reference/attention.hpp>
#include <skim/skim.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

float length(const skim::stored_row& key, std::int64_t D) {
  float sum = 0;
  for (std::int64_t d = 0; d < D; ++d) sum += std::pow(skim::load_element(key.data, key.type, d), 2.0f);
  return std::abs(key.scale) * std::sqrt(sum);
}

/// Short keys draw attention (arXiv 2406.11430). skim does the rest: sinks, recent keys, the highest scores, blocks,
/// gathering, masks, threads. What policies may have besides: skim/policy.hpp.
struct short_keys {
  skim::retention keep = skim::retention::budget(256, 4, 32);

  skim::report check(const skim::attention_args&) const { return {}; }
  void score(const skim::attention_blocks& blocks, skim::tensor_view<float, 2> scores, skim::memory, skim::memory,
             skim::executor_ref on) const {
    const std::int64_t Hk = skim::first_view(*blocks.args).heads;
    on.parallel_for(blocks.count() * Hk, [&](std::int64_t row, unsigned) {
      const skim::attention_sequence block = blocks.at(row / Hk);
      for (std::int64_t slot = 0; slot < block.past(row % Hk); ++slot) {
        *scores.at(row, slot) = -length(block.kv.row(block.kv.k, row % Hk, slot), block.kv.k.dim);
      }
    });
  }
};

/// Every n-th past key, whatever it holds. A selector that gives lists itself has no `keep`.
struct every_nth {
  std::int64_t n = 16;

  skim::report check(const skim::attention_args&) const {
    return n < 1 ? skim::fault(skim::status::bad_value, "n", n, 1, "at least") : skim::report{};
  }
  std::int64_t list_capacity(const skim::attention_args& args) const { return skim::longest_past(args, 0) / n + 1; }
  void select(const skim::attention_args& args, const skim::index_lists& lists, skim::memory, skim::memory,
              skim::executor_ref on) const {
    const std::int64_t Hk = skim::first_view(args).heads;
    on.parallel_for(lists.rows, [&](std::int64_t row, unsigned) {
      const std::int64_t past = skim::sequence_at(args, row / Hk).past(row % Hk);
      lists.counts[row] = 0;
      for (std::int64_t slot = 0; slot < past; slot += n) {
        lists.row(row)[lists.counts[row]++] = static_cast<std::int32_t>(slot);
      }
    });
  }
};

/// Runs the policy, and the reference on the keys that it chose. True if both give the same.
template <class Policy>
bool try_out(const char* name, const Policy& policy, const skim::attention_args& args) {
  const skim::cpu::attention op{policy};
  const skim::buffer workspace(op.workspace_bytes(args, 1));
  const std::int64_t rows = skim::list_rows(args), capacity = op.list_capacity(args);
  std::vector<std::int32_t> indices(static_cast<std::size_t>(rows * capacity)), counts(static_cast<std::size_t>(rows));
  const skim::index_lists lists{indices.data(), counts.data(), rows, capacity};
  if (!op.select(args, lists, {}, workspace, skim::serial_executor{})) return false;  // the choice alone, to look at
  if (!op.run(args, {}, workspace, skim::serial_executor{})) return false;            // choice and attention

  const std::int64_t Tq = args.out.extents[0], Hq = args.out.extents[1], D = args.out.extents[2];
  std::vector<double> exact(static_cast<std::size_t>(Tq * Hq * D));
  skim::reference::attend(args, &lists, {exact.data(), {Tq, Hq, D}});
  double worst = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(static_cast<const float*>(args.out.data)[i]) - exact[i]));
  }
  std::printf("%s: %d of %d past keys read; largest difference to the reference on the same keys: %.1e\n", name,
              static_cast<int>(counts[0]), static_cast<int>(args.kv.tokens - Tq), worst);
  return check_indices(args, &lists) && worst < 1e-5;
}

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
  args.kv = skim::contiguous_kv(skim::tensor_view<float, 3>(keys.data(), {Tk + Tq, Hk, D}),
                                skim::tensor_view<float, 3>(values.data(), {Tk + Tq, Hk, D}), Tk + Tq);
  return try_out("short keys", short_keys{}, args) && try_out("every 16th key", every_nth{}, args) ? 0 : 1;
}
