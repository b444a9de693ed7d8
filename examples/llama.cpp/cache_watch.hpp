// SPDX-License-Identifier: Apache-2.0
/// \file Which tokens should leave a cache of llama.cpp's. The engine keeps one set of tokens for all layers and heads, and
/// takes single ones out when it is asked to; the backend sees what scores them, the keys and values of every layer.
///
/// Scores are pooled over all heads of all layers by `rank_scores`.
#pragma once

#include <skim/buffer.hpp>
#include <skim/cpu/dispatch.hpp>
#include <skim/interop/ggml_operands.hpp>

#include <algorithm>
#include <vector>

namespace skim_llama {

/// Of one sequence in a context, chunk by chunk, from its beginning. The mask tells which cells come: a row sees what the row
/// before it saw, and its own. Where that does not tell (tokens were generated in between, or the host took some out by
/// itself and their cells are used again), the cache counts as not seen, until a sequence begins.
class cache_watch {
 public:
  /// An attention node that is about to be computed.
  void see(const ggml_tensor& node) {
    const skim::ggml_operands x = skim::ggml_operands_of(const_cast<ggml_tensor&>(node));
    if (!x.mask || x.q->ne[3] != 1 || x.q->ne[1] == 0) return;
    if (x.k->data == first_keys_) {  // another graph
      for (cache& each : caches_) each.layers.clear();
    } else if (has_keys(x.k->data)) {
      return;  // a layer that reads another one's keys
    }
    if (caches_.empty() || caches_[0].layers.empty()) first_keys_ = x.k->data;
    // A graph has one mask for each kind of cache: the first, the second and so on are the same in each.
    std::size_t g = 0;
    while (g < caches_.size() && !caches_[g].layers.empty() && caches_[g].mask != x.mask->data) ++g;
    if (g == caches_.size()) caches_.emplace_back();
    if (caches_[g].layers.empty()) {
      caches_[g].mask = x.mask->data;
      follow(*x.mask, x.q->ne[1], x.k->ne[1], caches_[g].cells);
    }
    caches_[g].layers.push_back({*x.k, *x.v});
  }

  /// Appends to `leaving` which of the sequence's `tokens` tokens, counted in the order in which they came, have to leave so
  /// that `op` keeps what it keeps; they count as gone. Its scores are pooled over all heads of all layers whose cache has
  /// all tokens, by rank. Statuses: those of eviction; bad_extent where not all tokens were seen coming.
  skim::report choose(const skim::cpu::any_eviction& op, std::int64_t tokens, skim::executor_ref executor,
                      std::vector<std::int32_t>& leaving) {
    const std::int64_t n = tokens;
    std::vector<std::int32_t> positions(static_cast<std::size_t>(n > 0 ? n : 0));
    for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int32_t>(i);
    std::vector<float> scores, pooled(positions.size());
    std::int64_t rows = 0;
    skim::eviction_args args;
    std::int64_t longest = 0;
    for (cache& each : caches_) {
      longest = std::max(longest, static_cast<std::int64_t>(each.cells.size()));
      if (n <= 0 || static_cast<std::int64_t>(each.cells.size()) != n) continue;
      for (const layer& at : each.layers) {
        args = arguments(each, at, positions);
        // As a chunk of all that is there: nothing has to be kept from one choice to the next.
        state_.reserve(op.state_bytes(args));
        workspace_.reserve(op.workspace_bytes(args, executor.concurrency()));
        if (skim::report r = op.reset(args, state_, executor); !r) return r;
        if (skim::report r = op.observe(args, state_, workspace_, executor); !r) return r;
        scores.resize(static_cast<std::size_t>((rows + args.kv.heads) * n));
        const skim::tensor_view<float, 2> of_layer(scores.data() + rows * n, {args.kv.heads, n});
        if (skim::report r = op.score(args, of_layer, state_, workspace_, executor); !r) return r;
        rows += args.kv.heads;
      }
    }
    if (rows == 0) return skim::fault(skim::status::bad_extent, "tokens", tokens, longest);
    const skim::tensor_view<float, 2> mean(pooled.data(), {1, n});
    const skim::tensor_view<float, 2> all(scores.data(), {rows, n});
    workspace_.reserve(skim::cpu::any_rank_scores_bytes(n, executor.concurrency()));
    if (skim::report r = skim::cpu::any_rank_scores(all, workspace_, executor); !r) return r;
    if (skim::report r = skim::cpu::any_pool_scores(all, mean, executor); !r) return r;
    std::vector<std::int32_t> slots(positions.size());
    std::int32_t count = 0;
    const skim::index_lists stays{slots.data(), &count, 1, n};
    if (skim::report r = op.choose(args, mean, stays, workspace_, executor); !r) return r;

    std::vector<char> stay(positions.size());
    for (std::int32_t i = 0; i < count; ++i) stay[static_cast<std::size_t>(slots[static_cast<std::size_t>(i)])] = 1;
    for (std::size_t i = 0; i < stay.size(); ++i) {
      if (!stay[i]) leaving.push_back(static_cast<std::int32_t>(i));
    }
    for (cache& each : caches_) {
      if (static_cast<std::int64_t>(each.cells.size()) != n) continue;
      std::vector<std::int32_t> left;
      for (std::size_t i = 0; i < stay.size(); ++i) {
        if (stay[i]) left.push_back(each.cells[i]);
      }
      each.cells = left;
    }
    return {};
  }

 private:
  struct layer {
    ggml_tensor k, v;  // the views of them: the memory is the cache's
  };
  struct cache {
    const void* mask = nullptr;
    std::vector<std::int32_t> cells;  // of the sequence's tokens, in the order in which they came; empty: not seen
    std::vector<layer> layers;        // of this graph
  };

  bool has_keys(const void* keys) const {
    for (const cache& each : caches_) {
      for (const layer& at : each.layers) {
        if (at.k.data == keys) return true;
      }
    }
    return false;
  }

  static bool sees(const ggml_tensor& mask, std::int64_t row, std::int64_t cell) {
    const char* const at = static_cast<const char*>(mask.data) + static_cast<std::size_t>(row) * mask.nb[1] +
                           static_cast<std::size_t>(cell) * mask.nb[0];
    if (mask.type == GGML_TYPE_F32) return *reinterpret_cast<const std::uint32_t*>(at) != 0xff800000u;
    return *reinterpret_cast<const std::uint16_t*>(at) != (mask.type == GGML_TYPE_F16 ? 0xfc00u : 0xff80u);
  }

  /// What a window has left behind, or the host took out, is seen no more and leaves the order.
  static void follow(const ggml_tensor& mask, std::int64_t rows, std::int64_t cells, std::vector<std::int32_t>& order) {
    enum : char { unseen, known, own };
    std::vector<char> is(static_cast<std::size_t>(cells), unseen);
    std::vector<std::int32_t> next;
    std::int64_t seen = 0, news = 0;
    std::int32_t first = 0;
    for (std::int64_t row = 1; row < rows; ++row) {
      for (std::int64_t cell = 0; cell < cells; ++cell) {
        if (!sees(mask, row, cell) || sees(mask, row - 1, cell)) continue;
        next.push_back(static_cast<std::int32_t>(cell));
        is[static_cast<std::size_t>(cell)] = own;
      }
    }
    for (const std::int32_t cell : order) {
      if (cell < cells && is[static_cast<std::size_t>(cell)] == unseen) is[static_cast<std::size_t>(cell)] = known;
    }
    for (std::int64_t cell = 0; cell < cells; ++cell) {
      if (!sees(mask, 0, cell)) continue;
      ++seen;
      if (is[static_cast<std::size_t>(cell)] != unseen) continue;
      ++news;
      first = static_cast<std::int32_t>(cell);
    }
    std::vector<std::int32_t> followed;
    if (seen == 1) {  // a sequence begins
      for (std::int64_t cell = 0; cell < cells; ++cell) {
        if (sees(mask, 0, cell)) followed.push_back(static_cast<std::int32_t>(cell));
      }
    } else if (news == 1 && !order.empty()) {
      for (const std::int32_t cell : order) {
        if (cell < cells && is[static_cast<std::size_t>(cell)] == known && sees(mask, rows - 1, cell))
          followed.push_back(cell);
      }
      if (sees(mask, rows - 1, first)) followed.push_back(first);
    } else {
      order.clear();
      return;
    }
    for (const std::int32_t cell : next) {
      if (sees(mask, rows - 1, cell)) followed.push_back(cell);
    }
    order = followed;
  }

  /// The cache as pages of one cell.
  static skim::eviction_args arguments(const cache& of, const layer& at, const std::vector<std::int32_t>& positions) {
    const auto pages = [](const ggml_tensor& t) {
      const auto stride = [&](int axis) { return static_cast<std::int64_t>(t.nb[axis] / ggml_type_size(t.type)); };
      return skim::tensor_view<void, 4>(t.data, {t.ne[1], 1, t.ne[2], t.ne[0]}, {stride(1), stride(1), stride(2), 1},
                                        skim::element_of_ggml(t.type));
    };
    const std::int64_t n = static_cast<std::int64_t>(of.cells.size());
    skim::eviction_args args;
    args.kv = skim::paged_cache(pages(at.k), pages(at.v), of.cells.data(), n, n);
    args.kv.positions = const_cast<std::int32_t*>(positions.data());  // scoring writes nothing
    args.new_tokens = n;
    args.share_heads = true;
    return args;
  }

  std::vector<cache> caches_;
  const void* first_keys_ = nullptr;  // of this graph
  skim::buffer workspace_, state_;
};

}  // namespace skim_llama
