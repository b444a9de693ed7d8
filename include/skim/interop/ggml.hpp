// SPDX-License-Identifier: Apache-2.0
/// \file ggml's attention node, `GGML_OP_FLASH_ATTN_EXT` or a custom op with its operands, computed by skim. Needs ggml.h
/// alone, which the host brings, and an operation: one of `cpu/attention.hpp` or, for any processor, `cpu/dispatch.hpp`.
/// Allocates.
///
///   skim::ggml_attention<skim::cpu::any_attention> attention({skim::quoka{}});  // one per context, for all its layers
///   skim::check(skim::ggml_operands_of(*node))                 // when the graph is built: what is refused stays with the host
///   attention.compute(skim::ggml_operands_of(*node), threads)  // each node; an executor, or each thread of a team
///
/// or, in a graph that the host builds, `skim::ggml_attention_op` in place of `ggml_flash_attn_ext`.
#pragma once

#include <skim/buffer.hpp>
#include <skim/interop/ggml_operands.hpp>
#include <skim/interop/mask_reader.hpp>
#include <skim/team_executor.hpp>

#include <algorithm>
#include <cstring>
#include <vector>

namespace skim { inline namespace v0_2 {

/// Computes nodes: chunks by an operation, `cpu::attention<...>` or `cpu::any_attention`; by a dense one what looks both ways,
/// what has a window, which reads little as it is, and what has a mask with other numbers than 0 and -inf. One per context
/// that computes: it holds what masks said, views and scratch, which grow with the longest call.
///
/// K and V of Q8_0 are read as they are; of ggml's other quantised types they are widened to f32 for the call, each row once:
/// 4 bytes a number of one layer.
///
/// A mask serves all layers of a graph and is read once in it. Layers have their own caches; so when one comes that came
/// before, the host has begun another graph, whose masks may say something else.
template <class Operation, class Dense = Operation>
class ggml_attention {
 public:
  explicit ggml_attention(const Operation& op = {}, const Dense& dense = {}) : op_(op), dense_(dense) {}

  /// Makes the scratch large enough for nodes with at most these rows, cells, heads and dimensions, and threads; what such a
  /// node needs beyond it for masks of many sequences is allocated when it is computed. Statuses: those of `check`.
  report reserve(const ggml_operands& x, unsigned workers) {
    if (report r = check(x); !r) return r;
    const attention_args args = ggml_shape_of(x);
    if (report r = op_.check_shape(args); !r) return r;
    workspace_.reserve(op_.workspace_bytes(args, workers));
    workspace_.reserve(dense_.workspace_bytes(args, workers));
    widened(x);
    return {};
  }

  /// By one thread, with an executor. Statuses: those of `check` and of attention.
  report compute(const ggml_operands& x, executor_ref executor) {
    if (report r = prepare(x, executor.concurrency()); !r) return r;
    return run(executor);
  }

  /// By each thread of a team, as ggml calls a custom op.
  report compute(const ggml_operands& x, const team_executor& team) {
    team.single([&] { prepared_ = prepare(x, team.concurrency()); });
    const report answer = prepared_ ? run(team) : prepared_;
    team.wait();  // the next call prepares again
    return answer;
  }

  /// For a host that computes another graph before any cache comes again.
  void begin_graph() {
    masks_used_ = 0;
    keys_seen_.clear();
  }

 private:
  struct call {
    attention_args args;
    bool dense;
    std::size_t first_view, first_offset;
  };
  struct read_mask {
    const void* data = nullptr;
    std::int64_t rows = 0, cells = 0, streams = 0;
    std::vector<mask_reader> of_streams;
    std::vector<char> edges;  // the first and the last row of each stream

    template <class Do>
    void for_each_edge(const ggml_tensor& mask, const Do& action) const {
      const std::size_t bytes = static_cast<std::size_t>(cells) * ggml_type_size(mask.type);
      std::size_t at = 0;
      for (std::int64_t stream = 0; stream < streams; ++stream) {
        const char* const first = static_cast<const char*>(mask.data) + static_cast<std::size_t>(stream) * mask.nb[3];
        action(at, first, bytes);
        action(at + bytes, first + static_cast<std::size_t>(rows - 1) * mask.nb[1], bytes);
        at += 2 * bytes;
      }
    }
    /// A cheap look at whether memory that held this mask holds another one now.
    bool holds_edges_of(const ggml_tensor& mask) const {
      bool same = true;
      for_each_edge(mask, [&](std::size_t at, const char* row, std::size_t bytes) {
        same &= std::memcmp(edges.data() + at, row, bytes) == 0;
      });
      return same;
    }
    void keep_edges_of(const ggml_tensor& mask) {
      edges.resize(2 * static_cast<std::size_t>(streams * cells) * ggml_type_size(mask.type));
      for_each_edge(mask, [&](std::size_t at, const char* row, std::size_t bytes) {
        std::memcpy(edges.data() + at, row, bytes);
      });
    }
  };

  /// The operands with K and V as they are computed on, and the work of widening them.
  ggml_operands widened(const ggml_operands& x) {
    const bool shared = x.v_in_k(), k = widened_for_ggml(x.k->type), v = widened_for_ggml(x.v->type) && !shared;
    const auto numbers = [](const ggml_tensor& t) {
      return static_cast<std::size_t>(t.ne[0] * t.ne[1] * t.ne[2] * t.ne[3]);
    };
    const std::size_t of_k = k ? numbers(*x.k) : 0, of_v = v ? numbers(*x.v) : 0;
    wide_.reserve((of_k + of_v) * sizeof(float));
    float* const data = wide_.as<float>();
    to_widen_[0] = k ? x.k : nullptr;
    to_widen_[1] = v ? x.v : nullptr;
    computed_[0] = detail::ggml_computed(*x.k, data);
    computed_[1] = detail::ggml_computed(*x.v, data + of_k);
    if (shared) {
      computed_[1] = computed_[0];
      computed_[1].ne[0] = x.v->ne[0];
    }
    ggml_operands wide = x;
    wide.k = &computed_[0];
    wide.v = &computed_[1];
    return wide;
  }

  report run(executor_ref executor) const {
    for (int i = 0; i < 2; ++i) {
      if (to_widen_[i]) detail::widen_ggml(*to_widen_[i], computed_[i], executor);
    }
    for (const call& c : calls_) {
      const report r =
          c.dense ? dense_.run(c.args, {}, workspace_, executor) : op_.run(c.args, {}, workspace_, executor);
      if (!r) return r;
    }
    return {};
  }

  static report check_data(const ggml_operands& x) {
    if (!x.q->data) return null_fault("q.data");
    if (!x.out->data) return null_fault("out.data");
    if (x.k->ne[1] == 0) return {};
    if (!x.k->data) return null_fault("k.data");
    if (!x.v->data) return null_fault("v.data");
    return x.mask && !x.mask->data ? null_fault("mask.data") : report{};
  }

  report prepare(const ggml_operands& given, unsigned workers) {
    views_.clear();
    offsets_.clear();
    calls_.clear();
    to_widen_[0] = to_widen_[1] = nullptr;
    if (report r = check(given); !r) return r;
    const std::int64_t Tq = given.q->ne[1], cells = given.k->ne[1];
    if (Tq == 0) return {};
    if (report r = check_data(given); !r) return r;
    // The cache, of which another graph may look at another part.
    const ggml_tensor* cache = given.k;
    while (cache->view_src) cache = cache->view_src;
    if (std::find(keys_seen_.begin(), keys_seen_.end(), cache->data) != keys_seen_.end()) begin_graph();
    keys_seen_.push_back(cache->data);
    const ggml_operands x = widened(given);
    for (std::int64_t stream = 0; stream < x.q->ne[3]; ++stream) {
      if (cells == 0) {
        add(x, stream, {0, Tq, 0, -1, skim::mask::full()}, nullptr, 0);
        continue;
      }
      if (!x.mask) {
        for (std::int64_t t = 0; t < Tq; t += cells) {
          add(x, stream, {t, (std::min)(cells, Tq - t), cells, 0, skim::mask::full()}, nullptr, 0);
        }
        continue;
      }
      const mask_reader& reader =
          reader_of(*x.mask, Tq, cells).of_streams[static_cast<std::size_t>(stream % x.mask->ne[3])];
      for (std::size_t r = 0; r < reader.runs().size(); ++r) add(x, stream, reader.runs()[r], &reader, r);
    }
    for (call& c : calls_) {
      c.args.sequences = views_.data() + c.first_view;
      c.args.offsets = offsets_.data() + c.first_offset;
      workspace_.reserve(c.dense ? dense_.workspace_bytes(c.args, workers) : op_.workspace_bytes(c.args, workers));
    }
    return {};
  }

  const read_mask& reader_of(const ggml_tensor& mask, std::int64_t rows, std::int64_t cells) {
    for (std::size_t i = 0; i < masks_used_; ++i) {
      const read_mask& each = masks_[i];
      if (each.data == mask.data && each.rows == rows && each.cells == cells && each.streams == mask.ne[3] &&
          each.holds_edges_of(mask)) {
        return each;
      }
    }
    if (masks_used_ == masks_.size()) masks_.emplace_back();
    read_mask& next = masks_[masks_used_++];
    next.data = mask.data;
    next.rows = rows;
    next.cells = cells;
    next.streams = mask.ne[3];
    next.keep_edges_of(mask);
    next.of_streams.resize(static_cast<std::size_t>(mask.ne[3]));
    for (std::int64_t s = 0; s < mask.ne[3]; ++s) {
      mask_reader& reader = next.of_streams[static_cast<std::size_t>(s)];
      reader.clear();
      if (report r = reader.read(detail::ggml_mask_rows(mask, s, 0, rows, cells)); !r)
        reader.clear();  // `check` has seen it
    }
    return next;
  }

  /// Appends a run to the last call, or begins another.
  void add(const ggml_operands& x, std::int64_t stream, const mask_run& run, const mask_reader* reader,
           std::size_t index) {
    const tensor_view<const void, 3> q = rows(detail::ggml_rows(*x.q, stream), run.first_row, run.rows);
    const tensor_view<void, 3> out = rows(detail::ggml_result(*x.out, stream), run.first_row, run.rows);
    if (run.tokens == 0) {  // as in ggml: zeros
      for (std::int64_t t = 0; t < run.rows; ++t) {
        for (std::int64_t h = 0; h < out.extents[1]; ++h) {
          std::memset(out.at(t, h), 0, static_cast<std::size_t>(bytes_of(out.type, out.extents[2])));
        }
      }
      return;
    }
    const bool dense = run.see.right != 0 || run.see.left < skim::mask::unbounded;
    const bool follows = !calls_.empty() && !run.biased && calls_.back().dense == dense &&
                         !has_bias(calls_.back().args) && calls_.back().args.mask.left == run.see.left &&
                         calls_.back().args.mask.right == run.see.right && q.data == next_q_ && out.data == next_out_;
    if (!follows) {
      attention_args args;
      args.q = q;
      args.out = out;
      args.q.extents[0] = args.out.extents[0] = 0;
      args.mask = run.see;
      args.scale = x.scale;
      args.soft_cap = x.soft_cap;
      args.sink_logits = x.sinks ? static_cast<const float*>(x.sinks->data) : nullptr;
      args.sequence_count = 0;
      if (run.biased) {
        const tensor_view<const void, 2> mask =
            detail::ggml_mask_rows(*x.mask, stream % x.mask->ne[3], run.first_row, run.rows, run.tokens);
        args.bias = {mask.data, {1, run.rows, run.tokens}, {0, mask.strides[0], 1}, mask.type};
      }
      calls_.push_back({args, dense, views_.size(), offsets_.size()});
      offsets_.push_back(0);
    }
    attention_args& args = calls_.back().args;
    args.q.extents[0] += run.rows;
    args.out.extents[0] += run.rows;
    ++args.sequence_count;
    offsets_.push_back(offsets_.back() + run.rows);
    views_.push_back(view_of(x, stream, run, reader, index));
    next_q_ = q.at(run.rows);
    next_out_ = out.at(run.rows);
  }

  static kv_view view_of(const ggml_operands& x, std::int64_t stream, const mask_run& run, const mask_reader* reader,
                         std::size_t index) {
    const std::int64_t first = run.first_cell >= 0 ? run.first_cell : 0;
    const tensor_view<const void, 3> k = detail::ggml_rows(*x.k, stream, first),
                                     v = detail::ggml_rows(*x.v, stream, first);
    kv_view view;
    if (run.first_cell >= 0) {
      view = contiguous_kv(k, v, run.tokens);
    } else {  // pages of one cell
      const auto pages = [](const tensor_view<const void, 3>& t) {
        return tensor_view<const void, 4>(t.data, {t.extents[0], 1, t.extents[1], t.extents[2]},
                                          {t.strides[0], t.strides[0], t.strides[1], 1}, t.type);
      };
      view = paged_kv(pages(k), pages(v), reader->cells(index), run.tokens, run.tokens);
    }
    if (run.positioned) view.positions = reader->positions(index);
    return x.v_in_k() ? with_values_in_keys(view, v.extents[2]) : view;
  }

  Operation op_;
  Dense dense_;
  std::vector<read_mask> masks_;
  std::size_t masks_used_ = 0;
  std::vector<const void*> keys_seen_;  // in this graph
  std::vector<kv_view> views_;
  std::vector<std::int64_t> offsets_;
  std::vector<call> calls_;
  const void *next_q_ = nullptr, *next_out_ = nullptr;  // where a run's rows have to be to follow the last one's
  const ggml_tensor* to_widen_[2] = {};                 // K and V as given, where they are
  ggml_tensor computed_[2] = {};                        // K and V as they are computed on
  buffer wide_, workspace_;
  report prepared_;
};

/// An op of ggml's that computes attention by skim. Lives as long as the graphs that hold its node; one for each node.
template <class Operation, class Dense = Operation>
struct ggml_attention_op {
  ggml_attention<Operation, Dense>* attention = nullptr;  ///< of the context
  float scale = 1, soft_cap = 0;
  report last;  ///< what the last computation said: an op of ggml's cannot fail
  team_barrier barrier;

  /// The node, [Dv, Hq, Tq, streams] f32 as `ggml_flash_attn_ext` gives it; null where skim refuses, see `check`. Operands
  /// as there; `mask` and `sinks` may be null.
  ggml_tensor* node(ggml_context* graph, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v, ggml_tensor* mask,
                    ggml_tensor* sinks) {
    ggml_tensor* operands[5] = {q, k, v, mask, sinks};
    int count = 3;
    if (mask) operands[count++] = mask;
    if (sinks) operands[count++] = sinks;
    has_mask_ = mask != nullptr;
    ggml_tensor* const made = ggml_custom_4d(graph, GGML_TYPE_F32, v->ne[0], q->ne[2], q->ne[1], q->ne[3], operands,
                                             count, run, GGML_N_TASKS_MAX, this);
    last = check(operands_of(*made));
    return last ? made : nullptr;
  }

 private:
  ggml_operands operands_of(ggml_tensor& made) const {
    ggml_operands x;
    x.q = made.src[0];
    x.k = made.src[1];
    x.v = made.src[2];
    x.mask = has_mask_ ? made.src[3] : nullptr;
    x.sinks = made.src[has_mask_ ? 4 : 3];
    x.out = &made;
    x.scale = scale;
    x.soft_cap = soft_cap;
    return x;
  }

  static void run(ggml_tensor* made, int ith, int nth, void* self) {
    ggml_attention_op& op = *static_cast<ggml_attention_op*>(self);
    const team_executor team(static_cast<unsigned>(ith), static_cast<unsigned>(nth), op.barrier);
    const report answer = op.attention->compute(op.operands_of(*made), team);
    if (ith == 0) op.last = answer;
  }

  bool has_mask_ = false;
};

}}  // namespace skim::v0_2
