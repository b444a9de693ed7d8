// SPDX-License-Identifier: Apache-2.0
/// \file A neuron selector in the manner of FastForward and the FFN that it thins out, written on the vocabulary alone.
#pragma once

#include <skim/executor.hpp>
#include <skim/index_lists.hpp>
#include <skim/math/order.hpp>
#include <skim/status.hpp>
#include <skim/view.hpp>
#include <skim/workspace.hpp>

#include <algorithm>
#include <cmath>

namespace skim_test {

using matrix = skim::tensor_view<const void, 2>;

inline float element_at(const matrix& m, std::int64_t row, std::int64_t column) {
  return skim::load_element(m.data, m.type, m.offset(row, column));
}

/// One gated FFN block.
struct block_args {
  matrix x;                        // [M, d]
  matrix gate, up;                 // [f, d]
  matrix down;                     // [d, f]
  skim::tensor_view<void, 2> out;  // [M, d]
};

inline float silu(float x) {
  return x / (1 + std::exp(-x));
}

/// predict: a weighted mean row of the block through two small matrices; choose: the `count` highest neurons.
struct block_mean_neurons {
  std::int64_t count = 0;
  matrix query;  // [1, d]
  matrix w1;     // [d, r]
  matrix w2;     // [r, f]

  struct scratch {
    float *weights, *mean, *hidden;
    scratch(skim::detail::arena& arena, const block_args& args, std::int64_t r) {
      weights = arena.take<float>(args.x.extents[0]);
      mean = arena.take<float>(args.x.extents[1]);
      hidden = arena.take<float>(r);
    }
  };

  std::size_t workspace_bytes(const block_args& args, unsigned) const {
    skim::detail::arena arena;
    scratch(arena, args, w1.extents[1]);
    return arena.used();
  }

  /// `scores` [1, f]: one logit per neuron.
  template <class Executor>
  void predict(const block_args& args, skim::tensor_view<float, 2> scores, skim::memory workspace,
               const Executor& executor) const {
    const std::int64_t M = args.x.extents[0], d = args.x.extents[1], r = w1.extents[1];
    skim::detail::arena arena(workspace.data);
    const scratch with(arena, args, r);
    executor.parallel_for(M, [&](std::int64_t t, unsigned) {
      float dot = 0;
      for (std::int64_t i = 0; i < d; ++i) dot += element_at(args.x, t, i) * element_at(query, 0, i);
      with.weights[t] = std::exp(dot / std::sqrt(static_cast<float>(d)));
    });
    executor.parallel_for(d, [&](std::int64_t i, unsigned) {
      float sum = 0, total = 0;
      for (std::int64_t t = 0; t < M; ++t) {
        sum += with.weights[t] * element_at(args.x, t, i);
        total += with.weights[t];
      }
      with.mean[i] = sum / total;
    });
    executor.parallel_for(r, [&](std::int64_t j, unsigned) {
      float sum = 0;
      for (std::int64_t i = 0; i < d; ++i) sum += with.mean[i] * element_at(w1, i, j);
      with.hidden[j] = std::max(sum, 0.0f);
    });
    executor.parallel_for(w2.extents[1], [&](std::int64_t j, unsigned) {
      float sum = 0;
      for (std::int64_t i = 0; i < r; ++i) sum += with.hidden[i] * element_at(w2, i, j);
      *scores.at(0, j) = sum;
    });
  }

  /// One list for the whole block: `lists.rows` is 1, its row holds `f` entries while it is being sorted.
  template <class Executor>
  void choose(skim::tensor_view<const float, 2> scores, const skim::index_lists& lists,
              const Executor& executor) const {
    executor.parallel_for(1, [&](std::int64_t, unsigned) {
      std::int32_t* const order = lists.row(0);
      const std::int64_t f = scores.extents[1], kept = std::min(count, f);
      for (std::int64_t j = 0; j < f; ++j) order[j] = static_cast<std::int32_t>(j);
      std::partial_sort(order, order + kept, order + f, [&](std::int32_t a, std::int32_t b) {
        const std::uint32_t first = skim::rank_bits(*scores.at(0, a)), second = skim::rank_bits(*scores.at(0, b));
        return first != second ? first > second : a < b;
      });
      std::sort(order, order + kept);
      lists.counts[0] = static_cast<std::int32_t>(kept);
    });
  }
};

/// out = (silu(x gate[keep]^T) * (x up[keep]^T)) down[:, keep]^T
struct sparse_block {
  struct scratch {
    float* active;  // [M, kept]
    scratch(skim::detail::arena& arena, const block_args& args, std::int64_t kept) {
      active = arena.take<float>(args.x.extents[0] * kept);
    }
  };

  std::size_t workspace_bytes(const block_args& args, const skim::index_lists& lists) const {
    skim::detail::arena arena;
    scratch(arena, args, lists.capacity);
    return arena.used();
  }

  template <class Executor>
  void run(const block_args& args, const skim::index_lists& lists, skim::memory workspace,
           const Executor& executor) const {
    skim::detail::arena arena(workspace.data);
    const scratch with(arena, args, lists.capacity);
    executor.parallel_for(args.x.extents[0], [&](std::int64_t t, unsigned) {
      for (std::int64_t i = 0; i < lists.counts[0]; ++i) {
        const std::int64_t j = lists.row(0)[i];
        float gate = 0, up = 0;
        for (std::int64_t c = 0; c < args.x.extents[1]; ++c) {
          gate += element_at(args.x, t, c) * element_at(args.gate, j, c);
          up += element_at(args.x, t, c) * element_at(args.up, j, c);
        }
        with.active[t * lists.capacity + i] = silu(gate) * up;
      }
    });
    executor.parallel_for(args.x.extents[0], [&](std::int64_t t, unsigned) {
      for (std::int64_t c = 0; c < args.down.extents[0]; ++c) {
        float sum = 0;
        for (std::int64_t i = 0; i < lists.counts[0]; ++i) {
          sum += with.active[t * lists.capacity + i] * element_at(args.down, c, lists.row(0)[i]);
        }
        skim::store_element(args.out.data, args.out.type, args.out.offset(t, c), sum);
      }
    });
  }
};

}  // namespace skim_test
