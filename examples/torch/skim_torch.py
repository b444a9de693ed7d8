# SPDX-License-Identifier: Apache-2.0
"""skim's attention for PyTorch: a chunk of a prompt reads its own keys and those of the cache that matter to it (QUOKA).

The first import compiles skim_torch.cu for the GPUs that are there, which takes a minute; later ones load what it made.
"""
import os
import pathlib

import torch
from torch.utils import cpp_extension

__all__ = ['prefill_attention']


def _load():
    here = pathlib.Path(__file__).resolve().parent
    capabilities = sorted({torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})
    if not capabilities:
        raise RuntimeError('skim_torch: there is no GPU that PyTorch can use')
    flags = []
    if 'TORCH_CUDA_ARCH_LIST' not in os.environ:  # PyTorch would choose sm_90 for Hopper, which has no wgmma
        names = ['90a' if capability == (9, 0) else '%d%d' % capability for capability in capabilities]
        flags = [f'-gencode=arch=compute_{name},code=sm_{name}' for name in names]
    cpp_extension.load('skim_torch', [str(here / 'skim_torch.cu')], extra_cuda_cflags=['-O3', *flags],
                       extra_include_paths=[str(here.parent.parent / 'include')], is_python_module=False)


_load()


@torch.library.register_fake('skim::prefill_attention')
def _(q, k, v, *_):
    return q.new_empty(q.shape[0], q.shape[1], v.shape[2])


def prefill_attention(q, k, v, *, budget=512, every=64, queries=48, dense_under=None, scale=None):
    """Causal attention of a chunk behind a cache: q [Tq, Hq, D], k [Tk, Hk, D], v [Tk, Hk, Dv] -> [Tq, Hq, Dv].

    The last Tq of the Tk tokens are the chunk's own; query head h reads KV head h // (Hq // Hk). Each tensor is of float32,
    float16 or bfloat16 and may have any strides but for its last axis, which is contiguous; the answer is of q's type.

    budget       cached keys that rows read beside those of their own chunk; None: all, which is dense attention
    every        rows that choose their keys together
    queries      queries that speak for those rows
    dense_under  cached tokens below which rows read all; None: 20480, where choosing begins to pay on a GPU
    scale        of the products; None: D ** -0.5

    Runs on q's device, on PyTorch's current stream, without synchronising; may be captured in a graph. There is no gradient.
    Raises ValueError for what skim refuses, in skim's words.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise RuntimeError('skim_torch: prefill_attention has no gradient; call it under torch.no_grad()')
    return torch.ops.skim.prefill_attention(q, k, v, budget, every, queries, dense_under, scale)
