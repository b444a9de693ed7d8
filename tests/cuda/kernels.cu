// SPDX-License-Identifier: Apache-2.0
// Every kernel that the library can launch, for a compiler to look at.
#include <skim/cuda/attention.cuh>
#include <skim/cuda/check_indices.cuh>
#include <skim/cuda/eviction.cuh>
#include <skim/cuda/evictor/caote.cuh>
#include <skim/cuda/evictor/h2o.cuh>
#include <skim/cuda/evictor/keydiff.cuh>
#include <skim/cuda/evictor/random_tokens.cuh>
#include <skim/cuda/evictor/snapkv.cuh>
#include <skim/cuda/ffn.cuh>
#include <skim/cuda/neuron_selector/fastforward.cuh>
#include <skim/cuda/selector/quoka.cuh>
#include <skim/selector/sink_window.hpp>

skim::report every_kernel(const skim::attention_args& args, skim::memory workspace, cudaStream_t stream) {
  const skim::cuda::attention<skim::dense> dense;
  const skim::cuda::attention op{skim::quoka{}};
  if (!dense.run(args, workspace, stream)) return {};
  return op.run(args, workspace, stream);
}

skim::report every_kernel(const skim::attention_args& args, skim::cuda::index_fault* found, cudaStream_t stream) {
  return skim::cuda::check_indices(args, nullptr, found, stream);
}

skim::report every_kernel(const skim::ffn_args& args, skim::tensor_view<float, 2> scores, skim::memory workspace,
                          cudaStream_t stream) {
  const skim::cuda::ffn<> dense;
  const skim::cuda::ffn op{skim::fastforward{}};
  if (!dense.score(args, scores, workspace, stream)) return {};
  return op.run(args, workspace, stream);
}

skim::report every_kernel(const skim::eviction_args& args, const skim::index_lists& lists, skim::memory state,
                          skim::memory workspace, cudaStream_t stream) {
  const skim::cuda::eviction fast{skim::fast_caote{skim::keydiff<>{}}};
  const skim::cuda::eviction weighted{skim::caote{skim::keydiff<>{}}};
  const skim::cuda::eviction pooled{skim::snapkv{}};
  const skim::cuda::eviction of_sums{skim::fast_caote{skim::h2o{}}};
  const skim::cuda::eviction of_lots{skim::random_tokens{}};
  const skim::cuda::eviction alike{skim::sink_window{}};
  if (!of_lots.run(args, lists, state, workspace, stream)) return {};
  if (!alike.run(args, lists, state, workspace, stream)) return {};
  if (!fast.run(args, lists, state, workspace, stream)) return {};
  if (!pooled.run(args, lists, state, workspace, stream)) return {};
  if (!of_sums.run(args, lists, state, workspace, stream)) return {};
  return weighted.run(args, lists, state, workspace, stream);
}
