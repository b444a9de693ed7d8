// SPDX-License-Identifier: Apache-2.0
/// \file Which tokens should leave a cache of llama.cpp's. The engine keeps one set of tokens for all layers and heads, and
/// takes single ones out when it is asked to; the backend sees what scores them, the keys and values of every layer.
#pragma once

#include <skim/buffer.hpp>
#include <skim/cpu/dispatch.hpp>
#include <skim/interop/ggml_operands.hpp>

#include <algorithm>
#include <vector>

namespace skim_llama {

/// Of one sequence in a context, chunk by chunk. What is sparse or windowed is left alone: of caches with masks of their
/// own, the one of which most is seen is watched.
class cache_watch {
 public:
  /// An attention node that is about to be computed.
  void see(const ggml_tensor& node) {
    const skim::ggml_operands x = skim::ggml_operands_of(const_cast<ggml_tensor&>(node));
    if (!x.mask || x.q->ne[3] != 1) return;
    if (std::count(keys_seen_.begin(), keys_seen_.end(), x.k->data) > 0) {  // another graph
      keys_seen_.clear();
      used_ = 0;
    }
    keys_seen_.push_back(x.k->data);
    std::size_t g = 0;
    while (g < used_ && caches_[g].mask != x.mask->data) ++g;
    if (g == used_) {
      if (++used_ > caches_.size()) caches_.emplace_back();
      caches_[g].mask = x.mask->data;
      caches_[g].layers.clear();
      follow(*x.mask, x.q->ne[1], x.k->ne[1], caches_[g].cells);
    }
    caches_[g].layers.push_back({*x.k, *x.v});
  }

  /// Appends to `leaving` which of the sequence's `tokens` tokens, counted in the order in which they came, have to leave so
  /// that `op` keeps what it keeps; they count as gone. Its scores are pooled over all heads of all layers, as KeyDiff's
  /// paper pools heads. Statuses: those of eviction; bad_extent where not all tokens were seen coming.
  skim::report choose(const skim::cpu::any_eviction& op, std::int64_t tokens, skim::executor_ref executor,
                      std::vector<std::int32_t>& leaving) {
    cache* most = nullptr;
    for (std::size_t g = 0; g < used_; ++g) {
      if (!most || caches_[g].cells.size() > most->cells.size()) most = &caches_[g];
    }
    const std::int64_t n = most ? static_cast<std::int64_t>(most->cells.size()) : 0;
    if (n != tokens || n == 0) return skim::fault(skim::status::bad_extent, "tokens", tokens, n);

    std::vector<std::int32_t> positions(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) positions[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
    const std::int64_t heads = most->layers[0].k.ne[2], rows = heads * static_cast<std::int64_t>(most->layers.size());
    std::vector<float> scores(static_cast<std::size_t>(rows * n)), pooled(static_cast<std::size_t>(n));
    skim::eviction_args args;
    for (std::size_t i = 0; i < most->layers.size(); ++i) {
      args = arguments(*most, most->layers[i], positions);
      workspace_.reserve(op.workspace_bytes(args, executor.concurrency()));
      state_.reserve(op.state_bytes(args));
      // As a chunk of all that is there: nothing has to be kept from one choice to the next.
      if (skim::report r = op.reset(args, state_, executor); !r) return r;
      if (skim::report r = op.observe(args, state_, workspace_, executor); !r) return r;
      const skim::tensor_view<float, 2> of_layer(scores.data() + static_cast<std::int64_t>(i) * heads * n, {heads, n});
      if (skim::report r = op.score(args, of_layer, state_, workspace_, executor); !r) return r;
    }
    const skim::tensor_view<float, 2> mean(pooled.data(), {1, n});
    if (skim::report r = skim::cpu::any_pool_scores({scores.data(), {rows, n}}, mean, executor); !r) return r;
    std::vector<std::int32_t> slots(static_cast<std::size_t>(n));
    std::int32_t count = 0;
    const skim::index_lists stays{slots.data(), &count, 1, n};
    if (skim::report r = op.choose(args, mean, stays, workspace_, executor); !r) return r;

    std::vector<std::int32_t> left;
    std::int32_t next = 0;
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(n); ++i) {
      if (next < count && slots[static_cast<std::size_t>(next)] == i) {
        left.push_back(most->cells[static_cast<std::size_t>(i)]);
        ++next;
      } else {
        leaving.push_back(i);
      }
    }
    most->cells = left;
    return {};
  }

 private:
  struct layer {
    ggml_tensor k, v;  // the views of them: the memory is the cache's
  };
  struct cache {
    const void* mask = nullptr;
    std::vector<std::int32_t> cells;  // of the sequence's tokens, in the order in which they came
    std::vector<layer> layers;
  };

  static bool sees(const ggml_tensor& mask, std::int64_t row, std::int64_t cell) {
    const char* const at = static_cast<const char*>(mask.data) + static_cast<std::size_t>(row) * mask.nb[1] +
                           static_cast<std::size_t>(cell) * mask.nb[0];
    if (mask.type == GGML_TYPE_F32) return *reinterpret_cast<const std::uint32_t*>(at) != 0xff800000u;
    return *reinterpret_cast<const std::uint16_t*>(at) != (mask.type == GGML_TYPE_F16 ? 0xfc00u : 0xff80u);
  }

  /// A row of a chunk sees what the row before it saw, and its own cell. Of the first row's cells those that are not known
  /// are its own and what came unseen. What nobody sees any more has left.
  static void follow(const ggml_tensor& mask, std::int64_t rows, std::int64_t cells, std::vector<std::int32_t>& order) {
    std::vector<std::int32_t> first, own;
    for (std::int64_t cell = 0; cell < cells; ++cell) {
      if (sees(mask, 0, cell)) first.push_back(static_cast<std::int32_t>(cell));
    }
    for (std::int64_t row = 1; row < rows; ++row) {
      for (std::int64_t cell = 0; cell < cells; ++cell) {
        if (sees(mask, row, cell) && !sees(mask, row - 1, cell)) own.push_back(static_cast<std::int32_t>(cell));
      }
    }
    if (first.size() == 1) order.clear();  // a sequence begins
    const auto gone = [&](std::int32_t cell) {
      return !sees(mask, rows - 1, cell) || std::count(own.begin(), own.end(), cell) > 0;
    };
    order.erase(std::remove_if(order.begin(), order.end(), gone), order.end());
    std::vector<char> known(static_cast<std::size_t>(cells));
    for (const std::int32_t cell : order) known[static_cast<std::size_t>(cell)] = 1;
    for (const std::int32_t cell : first) {
      if (!known[static_cast<std::size_t>(cell)] && sees(mask, rows - 1, cell)) order.push_back(cell);
    }
    order.insert(order.end(), own.begin(), own.end());
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
  std::size_t used_ = 0;  // in this graph
  std::vector<const void*> keys_seen_;
  skim::buffer workspace_, state_;
};

}  // namespace skim_llama
