// SPDX-License-Identifier: Apache-2.0
/// \file FastForward's predictor on a GPU (arXiv 2602.00397, section 3.1).
#pragma once

#include <skim/cuda/kernel/predict.cuh>
#include <skim/cuda/score_kernel.cuh>
#include <skim/neuron_selector/fastforward.hpp>

#include <cmath>

namespace skim { inline namespace v0_2 { namespace cuda {

/// Three kernels for all blocks of `runs`. Sums are f32: a score differs from exact arithmetic on the stored values by at most
/// 2^-24 (d + r + 32) times what the sums of absolute values would be.
template <>
struct score_kernel<fastforward> {
  static report check(const fastforward& policy) {
    const neuron_predictor& parts = policy.predictor;
    if (report r = detail::check_loadable(parts.query.type, "predictor.query"); !r) return r;
    if (report r = detail::check_loadable(parts.w1.type, "predictor.w1"); !r) return r;
    return detail::check_loadable(parts.w2.type, "predictor.w2");
  }

  static std::size_t workspace_bytes(const fastforward& policy, const ffn_args& args) {
    skim::detail::arena arena;
    static_cast<void>(lay_out(policy, args, args.x.extents[0], most_lists(args), arena));
    return arena.used();
  }

  /// scores [runs.lists, f], rows `stride` apart.
  static void score(const fastforward& policy, const ffn_args& args, const detail::ffn_runs& runs, float* scores,
                    std::int64_t stride, void* workspace, detail::launcher& launch) {
    using namespace detail;
    skim::detail::arena arena(workspace);
    predict_call call = lay_out(policy, args, args.x.extents[0], most_lists(args), arena);
    const tensor_view<const void, 2> x = rows(args.x, runs.first_row, runs.rows);
    call.x = static_cast<const char*>(x.data);
    call.scores = scores;
    call.score_row = stride;
    call.runs = runs;
    call.x_wide = wide(args.x.data, args.x.type, call.x_row);
    constexpr int threads = predict_call::threads, row_threads = predict_call::row_threads;
    const std::int64_t tiles = pieces(call.f, predict_call::neurons);
    with_stored(args.x.type, [&](auto x_element) {
      using X = decltype(x_element);
      launch(&find_row_logits<X, row_threads>, greater(runs.rows, 1), 1, row_threads, 0, call);
      with_stored(policy.predictor.w1.type, [&](auto element) {
        launch(&mix_rows<X, decltype(element), threads>, call.slices, runs.lists, threads, 0, call);
      });
    });
    with_stored(policy.predictor.w2.type, [&](auto element) {
      using W2 = decltype(element);
      if (runs.lists == 1) {
        launch(&score_neurons<W2, 1, threads>, tiles, 1, threads, 0, call);
      } else {
        launch(&score_neurons<W2, 4, threads>, tiles, pieces(runs.lists, 4), threads, 0, call);
      }
    });
  }

 private:
  static std::int64_t most_lists(const ffn_args& args) {
    return detail::smaller(block_count(args), detail::ffn_runs::most_lists);
  }

  /// Calls `body(T{})` for the type that kernels load.
  template <class Body>
  static void with_stored(element type, const Body& body) {
    if (type == element::bf16) return body(bf16{});
    if (type == element::f16) return body(f16{});
    body(0.0f);
  }
  static bool wide(const void* data, element type, std::int64_t stride) {
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride * bytes_of(type, 1) % 16 == 0;
  }

  static detail::predict_call lay_out(const fastforward& policy, const ffn_args& args, std::int64_t rows,
                                      std::int64_t lists, skim::detail::arena& arena) {
    const neuron_predictor& parts = policy.predictor;
    detail::predict_call call{};
    call.query = static_cast<const char*>(parts.query.data);
    call.w1 = static_cast<const char*>(parts.w1.data);
    call.w2 = static_cast<const char*>(parts.w2.data);
    call.x_row = args.x.strides[0];
    call.w1_row = parts.w1.strides[0];
    call.w2_row = parts.w2.strides[0];
    call.query_type = parts.query.type;
    call.query_wide = wide(parts.query.data, parts.query.type, 0);
    call.w1_wide = wide(parts.w1.data, parts.w1.type, call.w1_row);
    call.w2_wide = wide(parts.w2.data, parts.w2.type, call.w2_row);
    call.d = static_cast<int>(args.x.extents[1]);
    call.f = static_cast<int>(args.up.extents[0]);
    call.rank = static_cast<int>(parts.w1.extents[1]);
    call.slices = static_cast<int>(detail::pieces(call.d, detail::predict_call::slice));
    call.scale = 1 / std::sqrt(static_cast<float>(call.d));
    call.logits = arena.take<float>(rows);
    call.parts = arena.take<float>(lists * call.slices * call.rank);
    call.hidden = arena.take<float>(lists * call.rank);
    call.arrivals = arena.take<unsigned>(lists);
    return call;
  }
};

}}}  // namespace skim::v0_2::cuda
