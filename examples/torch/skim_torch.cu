// SPDX-License-Identifier: Apache-2.0
// Attention of a chunk as an operator of PyTorch, `torch.ops.skim.prefill_attention`: skim_torch.py builds it and says how it
// is called.
#include <skim/cuda/attention.cuh>
#include <skim/cuda/selector/quoka.cuh>

#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <string>

namespace {

/// What skim refuses is a ValueError in skim's words.
void demand(const skim::report& answer) {
  char text[256];
  TORCH_CHECK_VALUE(answer.ok(), "skim: ", skim::describe(answer, text, sizeof text));
}

skim::element element_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return skim::element::f32;
    case at::kHalf:
      return skim::element::f16;
    case at::kBFloat16:
      return skim::element::bf16;
    default:
      return skim::element::none;
  }
}

/// What `check` cannot see, or cannot name: where a tensor lies, its number of axes and types that skim does not know.
void check_tensor(const at::Tensor& tensor, c10::Device device, const char* name) {
  TORCH_CHECK_VALUE(tensor.is_cuda() && tensor.device() == device, "skim: ", name, " is on ", tensor.device(),
                    ", expected the CUDA device of q");
  TORCH_CHECK_VALUE(tensor.dim() == 3, "skim: ", name, " has ", std::to_string(tensor.dim()), " axes, expected 3");
  TORCH_CHECK_VALUE(element_of(tensor.scalar_type()) != skim::element::none, "skim: ", name, " is of ",
                    tensor.scalar_type(), ", expected Float, Half or BFloat16");
}

template <class Void>
skim::tensor_view<Void, 3> view_of(const at::Tensor& tensor, Void* data) {
  return {data,
          {tensor.size(0), tensor.size(1), tensor.size(2)},
          {tensor.stride(0), tensor.stride(1), tensor.stride(2)},
          element_of(tensor.scalar_type())};
}

/// On torch's stream, in scratch of torch's allocator: that gives it to nobody else before this stream is done with it.
template <class Selector>
void run(const Selector& selector, const skim::attention_args& args, const at::TensorOptions& device) {
  const skim::cuda::attention<Selector> op{selector};
  const std::size_t bytes = op.workspace_bytes(args);
  const at::Tensor scratch = at::empty({static_cast<std::int64_t>(bytes)}, device.dtype(at::kByte));
  const skim::cuda::launch_report done =
      op.run(args, {scratch.mutable_data_ptr(), bytes}, at::cuda::getCurrentCUDAStream());
  demand(done);
  C10_CUDA_CHECK(done.error);
}

at::Tensor prefill_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             std::optional<std::int64_t> budget, std::int64_t every, std::int64_t queries,
                             std::optional<std::int64_t> dense_under, std::optional<double> scale) {
  check_tensor(q, q.device(), "q");
  check_tensor(k, q.device(), "k");
  check_tensor(v, q.device(), "v");
  // A cache may have more rows and heads of values than are read; of tensors that is a mistake.
  for (int axis = 0; axis < 2; ++axis) {
    if (v.size(axis) == k.size(axis)) continue;
    demand(skim::fault(skim::status::bad_extent, axis == 0 ? "kv.v.rows" : "kv.v.heads", v.size(axis), k.size(axis)));
  }
  const c10::cuda::CUDAGuard guard(q.device());
  const at::Tensor out = at::empty({q.size(0), q.size(1), v.size(2)}, q.options());
  skim::attention_args args;
  args.q = view_of(q, q.const_data_ptr());
  args.kv = skim::contiguous_kv(view_of(k, k.const_data_ptr()), view_of(v, v.const_data_ptr()), k.size(0));
  args.out = view_of(out, out.mutable_data_ptr());
  args.scale = static_cast<float>(scale.value_or(0));
  if (!budget) {
    run(skim::dense{}, args, q.options());
  } else {
    const skim::retention keep =
        skim::retention::preset(*budget).for_every(every).dense_under(dense_under.value_or(-1));
    run(skim::quoka{skim::queries::needed(queries), keep}, args, q.options());
  }
  return out;
}

}  // namespace

TORCH_LIBRARY(skim, library) {
  library.def(
      "prefill_attention(Tensor q, Tensor k, Tensor v, int? budget, int every, int queries, int? dense_under, "
      "float? scale) -> Tensor");
}

// For tensors anywhere, so that those which are not on a GPU are refused in our words.
TORCH_LIBRARY_IMPL(skim, CompositeExplicitAutograd, library) {
  library.impl("prefill_attention", &prefill_attention);
}
