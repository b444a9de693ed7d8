// SPDX-License-Identifier: Apache-2.0
// skim::cuda behind functions that Python can call, so that peers are timed on the same tensors in the same process.
// Caches [tokens, Hk, D] and queries [Tq, Hq, D] in bf16, all contiguous.
#include <skim/cuda/attention.cuh>
#include <skim/cuda/ffn.cuh>
#include <skim/cuda/neuron_selector/fastforward.cuh>
#include <skim/cuda/selector/quoka.cuh>

namespace {

skim::attention_args arguments(const void* q, const void* k, const void* v, void* out, std::int64_t Tq, std::int64_t Tk,
                               std::int64_t Hq, std::int64_t Hk, std::int64_t D) {
  using skim::bf16;
  skim::attention_args args;
  args.q = skim::tensor_view<const bf16, 3>(static_cast<const bf16*>(q), {Tq, Hq, D});
  args.out = skim::tensor_view<bf16, 3>(static_cast<bf16*>(out), {Tq, Hq, D});
  args.kv =
      skim::contiguous_kv(skim::tensor_view<const bf16, 3>(static_cast<const bf16*>(k), {Tk + Tq, Hk, D}),
                          skim::tensor_view<const bf16, 3>(static_cast<const bf16*>(v), {Tk + Tq, Hk, D}), Tk + Tq);
  return args;
}

/// By `n` queries for every so many rows; 0: the paper's rule.
skim::cuda::attention<skim::quoka> quoka(std::int64_t n, std::int64_t every, std::int64_t budget) {
  using skim::retention;
  if (n == 0) return {skim::quoka::paper(skim::queries::lowest_cosine(), retention::budget(budget).dense_under(0))};
  return {skim::quoka{skim::queries::needed(n), retention::preset(budget).for_every(every).dense_under(0)}};
}

skim::index_lists lists_in(std::int32_t* memory, std::int64_t Tq, std::int64_t Hk, std::int64_t every,
                           std::int64_t budget) {
  skim::index_lists lists;
  lists.rows = skim::block_count(Tq, every) * Hk;
  lists.capacity = budget;
  lists.block_rows = every;
  lists.counts = memory;
  lists.indices = memory + lists.rows;
  return lists;
}

int error_of(const skim::cuda::launch_report& report) {
  return report.error != cudaSuccess ? static_cast<int>(report.error) : report.ok() ? 0 : -1;
}

}  // namespace

/// Rows of a layer in bf16: x, gate, up, down, FastForward's query, w1, w2, c1 and c2, and the output, all contiguous.
struct ffn_layer {
  const void *x, *gate, *up, *down, *query, *w1, *w2, *c1, *c2;
  void* out;
  std::int64_t M, d, f, rank, C, block;
  double share;

  skim::ffn_args args() const {
    skim::ffn_args call;
    call.x = matrix(x, M, d);
    call.gate = matrix(gate, f, d);
    call.up = matrix(up, f, d);
    call.down = matrix(down, f, d);
    call.out = {out, {M, d}, skim::element::bf16};
    call.block_tokens = block;
    call.first_block = 1;  // no block is an edge of the prompt
    return call;
  }
  skim::cuda::ffn<skim::fastforward> op() const {
    skim::fastforward policy;
    policy.keep = skim::neuron_retention::share(share);
    policy.predictor.query = {query, {d}, skim::element::bf16};
    policy.predictor.w1 = matrix(w1, d, rank);
    policy.predictor.w2 = matrix(w2, rank, f);
    policy.compensator.c1 = matrix(c1, d, C);
    policy.compensator.c2 = matrix(c2, C, d);
    return {policy};
  }

 private:
  static skim::tensor_view<const void, 2> matrix(const void* data, std::int64_t rows, std::int64_t columns) {
    return {data, {rows, columns}, skim::element::bf16};
  }
};

#define SHAPE std::int64_t Tq, std::int64_t Tk, std::int64_t Hq, std::int64_t Hk, std::int64_t D
#define TENSORS const void *q, const void *k, const void *v, void *out

extern "C" {

std::int64_t skim_workspace(SHAPE, std::int64_t n, std::int64_t every, std::int64_t budget) {
  const skim::attention_args args = arguments(nullptr, nullptr, nullptr, nullptr, Tq, Tk, Hq, Hk, D);
  const std::size_t dense = skim::cuda::attend{}.workspace_bytes(args, every);
  const std::size_t sparse = quoka(n, every, budget).workspace_bytes(args);
  return static_cast<std::int64_t>(dense > sparse ? dense : sparse);
}

int skim_dense(TENSORS, SHAPE, void* workspace, std::int64_t bytes, cudaStream_t stream) {
  const skim::memory scratch{workspace, static_cast<std::size_t>(bytes)};
  return error_of(skim::cuda::attend{}.run(arguments(q, k, v, out, Tq, Tk, Hq, Hk, D), scratch, stream));
}

int skim_quoka(TENSORS, SHAPE, std::int64_t n, std::int64_t every, std::int64_t budget, void* workspace,
               std::int64_t bytes, cudaStream_t stream) {
  const skim::memory scratch{workspace, static_cast<std::size_t>(bytes)};
  return error_of(quoka(n, every, budget).run(arguments(q, k, v, out, Tq, Tk, Hq, Hk, D), scratch, stream));
}

int skim_select(TENSORS, SHAPE, std::int64_t n, std::int64_t every, std::int64_t budget, std::int32_t* lists,
                void* workspace, std::int64_t bytes, cudaStream_t stream) {
  const skim::memory scratch{workspace, static_cast<std::size_t>(bytes)};
  return error_of(
      quoka(n, every, budget)
          .select(arguments(q, k, v, out, Tq, Tk, Hq, Hk, D), lists_in(lists, Tq, Hk, every, budget), scratch, stream));
}

int skim_attend(TENSORS, SHAPE, std::int64_t every, std::int64_t budget, std::int32_t* lists, void* workspace,
                std::int64_t bytes, cudaStream_t stream) {
  const skim::memory scratch{workspace, static_cast<std::size_t>(bytes)};
  return error_of(skim::cuda::attend{}.run(arguments(q, k, v, out, Tq, Tk, Hq, Hk, D),
                                           lists_in(lists, Tq, Hk, every, budget), scratch, stream));
}

std::int64_t skim_ffn_workspace(const ffn_layer* layer) {
  return static_cast<std::int64_t>(layer->op().workspace_bytes(layer->args()));
}

/// `step`: 0 all, 1 scores, 2 their choice, 3 the chosen neurons, 4 all neurons. `scores` [blocks, f]; `lists`: counts, then
/// rows, with room for rows of f.
int skim_ffn(const ffn_layer* layer, int step, float* scores, std::int32_t* lists, void* workspace, std::int64_t bytes,
             cudaStream_t stream) {
  const skim::ffn_args args = layer->args();
  const auto op = layer->op();
  const skim::memory scratch{workspace, static_cast<std::size_t>(bytes)};
  const std::int64_t blocks = block_count(args);
  const skim::tensor_view<float, 2> view(scores, {blocks, layer->f});
  const skim::index_lists own{lists + blocks, lists, blocks, op.list_capacity(args)};
  switch (step) {
    case 0:
      return error_of(op.run(args, scratch, stream));
    case 1:
      return error_of(op.score(args, view, scratch, stream));
    case 2:
      return error_of(op.choose(args, view, own, stream));
    case 3:
      return error_of(op.compute(args, own, scratch, stream));
    default:
      return error_of(skim::cuda::ffn<>{}.run(args, scratch, stream));
  }
}

}  // extern "C"
