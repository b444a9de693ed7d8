// SPDX-License-Identifier: Apache-2.0
// Every kernel that the library can launch, for a compiler to look at.
#include <skim/cuda/attention.cuh>
#include <skim/cuda/selector/quoka.cuh>

skim::report every_kernel(const skim::attention_args& args, skim::memory workspace, cudaStream_t stream) {
  const skim::cuda::attention<skim::dense> dense;
  const skim::cuda::attention op{skim::quoka{}};
  if (!dense.run(args, workspace, stream)) return {};
  return op.run(args, workspace, stream);
}
