#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds skim_torch to PyTorch's attention, then times both: python3 examples/torch/check.py [--no-times]

Ends with an error at the first difference that rounding does not explain.
"""
import argparse
import statistics

import torch
import torch.nn.functional as functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from skim_torch import prefill_attention

# To what products of a type are rounded, and what a weight may lose: include/skim/cuda/attend.cuh.
ROUNDOFF = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
LOST = {torch.float32: 2.0**-125, torch.float16: 2.0**-25, torch.bfloat16: 2.0**-125}


def normal(*shape, type=torch.bfloat16):
    return torch.randn(*shape, device='cuda').to(type)


def sdpa(q, k, v, mask=None):
    """PyTorch's attention of tensors [tokens, heads, dim]."""
    heads = lambda x: x[None].transpose(1, 2)
    out = functional.scaled_dot_product_attention(heads(q), heads(k), heads(v), attn_mask=mask, enable_gqa=True)
    return out.transpose(1, 2)[0]


def seen(Tq, Tk):
    """Which keys each row of a chunk sees that is the last of Tk tokens."""
    return torch.ones(Tq, Tk, device='cuda', dtype=torch.bool).tril(Tk - Tq)


def exact_and_bound(q, k, v):
    """PyTorch's attention in float64 on the same stored numbers, and how far from it rounding may lead each output."""
    Tq, Hq, D = q.shape
    Tk, Hk = k.shape[:2]
    type, out_type = k.dtype, q.dtype
    q = q.to(type) if ROUNDOFF[type] and D in (64, 80, 96, 128, 192, 256) else q  # tensor cores have one type
    q, k, v = q.double(), k.double(), v.double()
    mask = seen(Tq, Tk)
    with sdpa_kernel(SDPBackend.MATH):
        exact, size = sdpa(q, k, v, mask), sdpa(q, k, v.abs(), mask)
    products = torch.einsum('tkgd,jkd->tkgj', q.abs().view(Tq, Hk, Hq // Hk, D), k.abs()) * D**-0.5
    largest = products.masked_fill(~mask[:, None, None], 0).amax(3).view(Tq, Hq, 1)
    keys = mask.sum(1).view(Tq, 1, 1)
    delta = 2.0**-22 * (D + 8) * largest
    bound = (torch.expm1(2 * delta) + ROUNDOFF[type] + 2.0**-22 * (32 + keys / 16)) * size
    bound += LOST[type] * v.abs().sum(0).repeat_interleave(Hq // Hk, 0)
    return exact, bound + torch.finfo(out_type).eps / 2 * (exact.abs() + bound + torch.finfo(out_type).tiny)


def demand_near(out, exact, bound, what):
    worst = ((out.double() - exact).abs() / bound).max().item()
    print(f'{what}: the worst output lies at {worst:.2f} of its bound')
    assert worst <= 1, what


def demand_equal(a, b, what):
    assert torch.equal(a, b), what
    print(f'{what}: the same bits')


def relative_error(out, exact):
    return ((out.double() - exact.double()).norm() / exact.double().norm()).item()


def check_dense():
    for Tq, Tk, Hq, Hk, D, Dv, type, q_type in (
            (512, 3512, 8, 2, 128, 128, torch.bfloat16, torch.bfloat16),
            (100, 877, 6, 1, 64, 64, torch.float16, torch.float16),
            (33, 533, 4, 4, 80, 80, torch.bfloat16, torch.bfloat16),
            (77, 300, 4, 2, 40, 24, torch.float32, torch.float32),
            (64, 700, 8, 8, 96, 96, torch.float16, torch.float32),
    ):
        q, k, v = normal(Tq, Hq, D, type=q_type), normal(Tk, Hk, D, type=type), normal(Tk, Hk, Dv, type=type)
        exact, bound = exact_and_bound(q, k, v)
        shape = f'{Tq} of {Tk} tokens, {Hq} / {Hk} heads of {D}, {q_type} over {type}'.replace('torch.', '')
        dense = prefill_attention(q, k, v, budget=None)
        assert dense.dtype == q_type and dense.shape == (Tq, Hq, Dv)
        demand_near(dense, exact, bound, f'dense, {shape}')
        everything = dict(budget=Tk, dense_under=0)
        demand_equal(prefill_attention(q, k, v, every=Tq, **everything), dense, 'a budget that covers all')
        demand_near(prefill_attention(q, k, v, **everything), exact, bound, 'the same, chosen for every 64 rows')


def case_with_topic(Tq, Tk, Hq, Hk, D, type=torch.bfloat16):
    """Queries that ask for one direction, which runs of eight of the keys have: one in 128."""
    topic = torch.randn(D, device='cuda')
    q, k, v = normal(Tq, Hq, D) + topic, normal(Tk, Hk, D), normal(Tk, Hk, D, type=type)
    k[torch.arange(Tk) % 1024 < 8] += topic
    return q.to(type), k.to(type), v


def check_sparse():
    Tq, Tk, Hq, Hk, D = 512, 32768 + 512, 32, 8, 128
    q, k, v = case_with_topic(Tq, Tk, Hq, Hk, D)
    mask, random = seen(Tq, Tk), normal(Tk, Hk, D)
    dense, dense_of_random = sdpa(q, k, v, mask), sdpa(q, random, v, mask)
    for budget in (512, 1024, 4096):
        error = relative_error(prefill_attention(q, k, v, budget=budget), dense)
        of_random = relative_error(prefill_attention(q, random, v, budget=budget), dense_of_random)
        print(f'{budget} of {Tk - Tq} keys: |sparse - dense| / |dense| is {error:.4f}; of random keys {of_random:.2f}')
        assert 0 < error < 0.1, budget
    whole = prefill_attention(q, k, v, every=128)
    rest = [Tk - Tq + 128 * (i + 1) for i in range(4)]
    calls = [prefill_attention(q[128 * i:128 * (i + 1)], k[:rest[i]], v[:rest[i]], every=128) for i in range(4)]
    demand_equal(torch.cat(calls), whole, 'four calls of 128 rows, and one of 512')

    fused = torch.cat([q.flatten(1), k[-Tq:].flatten(1), v[-Tq:].flatten(1)], 1)  # a projection's rows
    view = fused[:, :Hq * D].view(Tq, Hq, D)
    by_heads = torch.zeros(2, Hk, Tk + 100, D, device='cuda', dtype=k.dtype)  # a cache with room for more
    by_heads[0, :, :Tk], by_heads[1, :, :Tk] = k.transpose(0, 1), v.transpose(0, 1)
    k_view, v_view = by_heads[:, :, :Tk].transpose(1, 2)
    assert not (view.is_contiguous() or k_view.is_contiguous() or v_view.is_contiguous())
    demand_equal(prefill_attention(view, k_view, v_view, every=128), whole, 'strided views')

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        demand_equal(prefill_attention(q, k, v, every=128), whole, 'another stream')
    static = torch.zeros_like(q)
    graph, answer = captured(lambda: prefill_attention(static, k, v, every=128))
    static.copy_(q)
    graph.replay()
    demand_equal(answer, whole, 'a captured graph')
    shape = prefill_attention(*(x.to('meta') for x in (q, k, v)))  # what torch.compile asks
    assert shape.shape == whole.shape and shape.dtype == whole.dtype


def check_refusals():
    q, k, v = normal(16, 4, 64), normal(100, 2, 64), normal(100, 2, 64)
    refused = {
        'q is on cpu': lambda: prefill_attention(q.cpu(), k.cpu(), v.cpu()),
        'k is on cpu': lambda: prefill_attention(q, k.cpu(), v),
        'q has 4 axes, expected 3': lambda: prefill_attention(q[None], k, v),
        'v is of Double': lambda: prefill_attention(q, k, v.double()),
        'kv.v.rows is 99, expected 100': lambda: prefill_attention(q, k, v[:99]),
        'kv.v.heads is 1, expected 2': lambda: prefill_attention(q, k, v[:, :1]),
        'q.extents[2] is 32, expected 64': lambda: prefill_attention(q[:, :, :32], k, v),
        'q.extents[1] is 3, expected a multiple of 2': lambda: prefill_attention(q[:, :3], k, v),
        'q.strides[2] is 2, expected 1': lambda: prefill_attention(normal(16, 4, 128)[:, :, ::2], k, v),
        'kv.tokens is 15, expected at least 16': lambda: prefill_attention(q, k[:15], v[:15]),
        'keep.count is 0, expected at least 1': lambda: prefill_attention(q, k, v, budget=0),
        'queries.n is 0, expected at least 1': lambda: prefill_attention(q, k, v, queries=0),
        'keep.every is -1, expected at least 0': lambda: prefill_attention(q, k, v, every=-1),
        'scale is nan': lambda: prefill_attention(q, k, v, scale=float('nan')),
        'has no gradient': lambda: prefill_attention(q.clone().requires_grad_(), k, v),
    }
    for words, call in refused.items():
        try:
            call()
        except (ValueError, RuntimeError) as error:
            assert words in str(error), f'{words!r} is not in {str(error)!r}'
            print(f'{type(error).__name__}: {error}')
        else:
            raise AssertionError(f'not refused: {words}')


def captured(call):
    """A graph of one call, and what that writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = call()
    return graph, answer


def microseconds(call):
    """The median of 15 replays, each behind a write of 256 MiB, which leaves nothing of keys and values in L2."""
    larger_than_l2 = torch.empty(2**28, device='cuda', dtype=torch.uint8)
    (graph, _), times = captured(call), []
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(15):
        larger_than_l2.zero_()
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times)


def time():
    Tq, Hq, Hk, D = 512, 32, 8, 128
    print(f'\nmicroseconds on one {torch.cuda.get_device_name()}, torch {torch.__version__}; {Tq} rows, bf16, {Hq} / {Hk} '
          f'heads of {D}\n| behind | SDPA | skim, dense | QUOKA, 512 keys | 1024 keys, 64 queries for every 128 rows |')
    print('| --- | --- | --- | --- | --- |')
    for past in (8192, 32768, 131072):
        q, k, v = case_with_topic(Tq, past + Tq, Hq, Hk, D)
        best = []
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            with sdpa_kernel(backend):  # no mask: a little more work than a causal one, and no slow path
                best.append(microseconds(lambda: sdpa(q, k, v)))
        calls = (dict(budget=None), dict(dense_under=0), dict(budget=1024, queries=64, every=128, dense_under=0))
        times = [min(best), *(microseconds(lambda: prefill_attention(q, k, v, **how)) for how in calls)]
        print(f'| {past} | ' + ' | '.join(f'{us:.0f}' for us in times) + ' |', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--no-times', action='store_true')
    options = parser.parse_args()
    torch.manual_seed(1)
    check_dense()
    check_sparse()
    check_refusals()
    if not options.no_times:
        time()


if __name__ == '__main__':
    main()
