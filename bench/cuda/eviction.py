#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times evictions of skim::cuda on one GPU: python3 bench/cuda/eviction.py [--json FILE] [--tokens 131072 2176 ...]

A cache that is one chunk over its budget: KeyDiff, bare, with and without stored norms; the smoothed FastCAOTE over it with
ends protected; TOVA, SnapKV and H2O, which watch the chunk's attention; the newest tokens and the first four; and lots.
Survivors refill the slots, or close up in order ('stable'). Each step, and a whole run behind new keys and positions, which
'append' writes as a host does. What it is measured by is one read of K. See run.py.
"""
import argparse
import ctypes
import math

import torch

from run import D, HK, HQ, build, demand, listed, parse, time, write

STEPS = ('observe', 'score', 'choose', 'compact')
# Number, whether norms are stored, newest tokens that stay, whether slots stay in order.
RULES = {'keydiff': (0, False, 0, 0), 'keydiff, norms': (0, True, 0, 0), 'keydiff, ends': (0, True, 512, 0),
         'keydiff, stable': (0, False, 0, 1), 'fast_caote, smoothed': (1, True, 512, 0), 'tova': (2, False, 0, 0),
         'snapkv': (3, False, 0, 0), 'h2o': (4, False, 0, 0), 'sink_window': (5, False, 0, 0), 'random': (6, False, 0, 0)}
WITH_SUMS = 2  # rules before this one keep sums of the keys that are there


class cache:
    """A cache, what its eviction needs, and the calls that are timed."""

    def __init__(self, skim, rule, tokens, fresh):
        number, norms, ends, stable = RULES[rule]
        make = lambda rows, heads: torch.randn(rows, heads, D, device='cuda', dtype=torch.bfloat16)
        self.k, self.v, self.q = make(tokens, HK), make(tokens, HK), make(fresh, HQ)
        self.lse = torch.full((fresh, HQ), math.log(tokens) + 0.5, device='cuda')  # of standard normal logits
        self.positions = torch.arange(tokens, device='cuda', dtype=torch.int32).repeat(HK, 1)
        self.next = (tokens + torch.arange(fresh, device='cuda', dtype=torch.int32)).repeat(HK)
        self.norms = (1 / self.k.float().norm(dim=2)).t().contiguous()
        i64, pointer = ctypes.c_int64, ctypes.c_void_p
        at = lambda tensor: pointer(tensor.data_ptr())
        stream = lambda: pointer(torch.cuda.current_stream().cuda_stream)
        sizes = lambda new, ends=ends: [i64(x) for x in (tokens, new, HK, D, ends, stable)]
        bytes_ = (i64 * 2)()
        none = (pointer * 4)()
        given = [at(self.k), at(self.v), at(self.q), at(self.lse), i64(HQ), at(self.positions),
                 at(self.norms) if norms else pointer()]
        demand(skim.skim_evict(number, *given, *sizes(fresh), none, bytes_, 5, stream()))
        self.memory = [torch.zeros(n, device='cuda', dtype=torch.uint8)
                       for n in (bytes_[0], bytes_[1], 4 * HK * (tokens + 1), 4 * HK * tokens)]
        memory = (pointer * 4)(*[tensor.data_ptr() for tensor in self.memory])
        step = lambda which: demand(skim.skim_evict(number, *given, *sizes(fresh), memory, bytes_, which, stream()))
        self.sink = torch.zeros(1, device='cuda', dtype=torch.int32)

        def append():
            demand(skim.skim_append(at(self.k), at(self.positions), *sizes(fresh)[:4], at(self.next), stream()))

        def run():
            append()
            step(4)

        # The sums of what is there: a chunk of all tokens but the one that an eviction keeps at least.
        if number < WITH_SUMS:
            demand(skim.skim_evict(number, *given, *sizes(tokens - 1, 0), memory, bytes_, 0, stream()))
        self.calls = {name: lambda i, which=which: step(which) for which, name in enumerate(STEPS)}
        self.calls['append'] = lambda i: append()
        self.calls['run'] = lambda i: run()
        self.calls['read K'] = lambda i: demand(
            skim.skim_read(at(self.k), i64(self.k.numel() * 2), at(self.sink), stream()))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--tokens', type=int, nargs='+', default=[2176, 16512, 131072])
    parser.add_argument('--fresh', type=int, default=128)
    parser.add_argument('--rules', nargs='+', default=list(RULES))
    options = parse(parser)
    skim = build(options.build, 'eviction.cu')
    results = []
    for tokens in options.tokens:
        for rule in options.rules:
            case = cache(skim, rule, tokens, options.fresh)
            answer = time(case.calls, 1, options.replays)
            results.append({'tokens': tokens, 'rule': rule, 'steps': answer})
            print(f'{tokens} {rule}: ' + listed(answer), flush=True)
            del case
            torch.cuda.empty_cache()
    write(options, results)


if __name__ == '__main__':
    main()
