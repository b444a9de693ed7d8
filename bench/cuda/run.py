#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times skim::cuda beside its peers on one GPU: python3 bench/cuda/run.py [--json FILE] [--chunk 128 512] [--past 8192 ...]

Needs nvcc and PyTorch; FlashAttention-3 is a peer where the package fa3-fwd is installed. Every time is of a captured graph
whose calls go round sets of keys and values larger than the L2 cache: the median of replays, in microseconds a call, all
methods of a shape in turn. bf16, 32 query heads and 8 KV heads of 128, causal.
"""
import argparse
import ctypes
import json
import pathlib
import statistics
import subprocess
import sys

import torch
import torch.nn.functional as functional
from torch.nn.attention import SDPBackend, sdpa_kernel

HQ, HK, D = 32, 8, 128
HERE = pathlib.Path(__file__).resolve().parent


def parse(parser):
    """The options of a benchmark: `parser`'s own and those of all."""
    parser.add_argument('--json')
    parser.add_argument('--replays', type=int, default=15)
    parser.add_argument('--build', default='build/cuda')
    return parser.parse_args()


def build(folder, source='library.cu'):
    """The functions of a source in this directory."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f'lib{pathlib.Path(source).stem}.so'
    subprocess.run(['nvcc', '-std=c++17', '-O3', '-arch=sm_90a', '-I', HERE.parent.parent / 'include', '-shared',
                    '-Xcompiler', '-fPIC', HERE / source, '-o', library], check=True)
    return ctypes.CDLL(str(library.resolve()))


def listed(answer):
    return ', '.join(f'{name} {value["us"]:.1f}' for name, value in answer.items())


def write(options, results):
    """What was measured, where `--json` says so."""
    if not options.json:
        return
    settings = {name: value for name, value in vars(options).items() if name not in ('json', 'build')}
    machine = {'gpu': torch.cuda.get_device_name(), 'torch': torch.__version__}
    text = json.dumps({'machine': machine, 'settings': settings, 'results': results}, indent=1)
    pathlib.Path(options.json).write_text(text + '\n')


def demand(code):
    if code != 0:
        raise RuntimeError(f'error {code}')


class shape:
    """Tensors of one shape, and the calls that are timed on them."""

    def __init__(self, skim, Tq, Tk, budget, n, every, sets):
        self.sizes = [Tq, Tk, HQ, HK, D]
        self.Tq, self.Tk, self.sets = Tq, Tk, sets
        make = lambda *size: torch.randn(*size, device='cuda', dtype=torch.bfloat16)
        self.q, self.out = make(Tq, HQ, D), make(Tq, HQ, D)
        self.k = [make(Tk + Tq, HK, D) for _ in range(sets)]
        self.v = [make(Tk + Tq, HK, D) for _ in range(sets)]
        i64, pointer = ctypes.c_int64, ctypes.c_void_p
        values = lambda *numbers: [i64(x) for x in numbers]
        sizes = values(*self.sizes)
        skim.skim_workspace.restype = i64
        rule, paper = values(n, every, budget), values(0, 0, budget)
        bytes_ = max(skim.skim_workspace(*sizes, *of) for of in (rule, paper))
        workspace = torch.empty(bytes_, device='cuda', dtype=torch.uint8)
        lists = [torch.zeros(-(-Tq // every) * HK * (budget + 1), device='cuda', dtype=torch.int32) for _ in range(sets)]
        stream = lambda: pointer(torch.cuda.current_stream().cuda_stream)
        at = lambda tensor: pointer(tensor.data_ptr())
        tensors = lambda i: [at(self.q), at(self.k[i]), at(self.v[i]), at(self.out)]
        scratch = lambda: [at(workspace), i64(bytes_), stream()]
        self.calls = {
            'skim dense': lambda i: demand(skim.skim_dense(*tensors(i), *sizes, *scratch())),
            'skim quoka': lambda i: demand(skim.skim_quoka(*tensors(i), *sizes, *rule, *scratch())),
            'skim paper': lambda i: demand(skim.skim_quoka(*tensors(i), *sizes, *paper, *scratch())),
            'skim select': lambda i: demand(skim.skim_select(*tensors(i), *sizes, *rule, at(lists[i]), *scratch())),
            'skim attend': lambda i: demand(
                skim.skim_attend(*tensors(i), *sizes, *rule[1:], at(lists[i]), *scratch())),
        }
        for name, backend in (('torch flash', SDPBackend.FLASH_ATTENTION), ('torch cudnn', SDPBackend.CUDNN_ATTENTION)):
            self.calls[name] = lambda i, backend=backend: self.torch(i, backend)
        try:
            import fa3_fwd._C  # noqa: F401: registers the operator
            self.calls['fa3'] = self.fa3
        except ImportError:
            pass

    def torch(self, i, backend):
        heads = lambda x: x[None].transpose(1, 2)
        with sdpa_kernel(backend):  # the mask is not causal for a chunk behind a past: as much work, less to hide
            functional.scaled_dot_product_attention(heads(self.q), heads(self.k[i]), heads(self.v[i]), enable_gqa=True)

    def fa3(self, i):
        none = [None] * 13
        torch.ops.fa3_fwd.fwd(self.q[None], self.k[i][None], self.v[i][None], None, None, None, self.out[None], *none,
                              *[None] * 3, D ** -0.5, True, -1, -1, 0, 0.0, True, None, 0, True, 0)


def time(calls, sets, replays):
    """Medians and spreads in microseconds, each method's graph replayed in turn."""
    graphs, answer = {}, {}
    calls_of_graph = sets * max(1, 12 // sets)
    for name, call in calls.items():
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for i in range(sets):
                    call(i)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                for i in range(calls_of_graph):
                    call(i % sets)
            graphs[name] = graph
        except Exception as error:  # a peer that cannot is no peer here
            print(f'{name}: {error}', file=sys.stderr)
            torch.cuda.synchronize()
    times = {name: [] for name in graphs}
    for round_ in range(replays + 2):
        for name, graph in graphs.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            if round_ >= 2:
                times[name].append(begin.elapsed_time(end) * 1e3 / calls_of_graph)
    for name, values in times.items():
        median = statistics.median(values)
        answer[name] = {'us': median, 'spread_percent': 100 * (max(values) - min(values)) / median}
    return answer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--chunk', type=int, nargs='+', default=[128, 512])
    parser.add_argument('--past', type=int, nargs='+', default=[8192, 32768, 65536, 131072])
    parser.add_argument('--budget', type=int, default=1024)
    parser.add_argument('--queries', type=int, default=64)
    parser.add_argument('--every', type=int, default=128)
    options = parse(parser)
    skim = build(options.build)
    results = []
    for Tq in options.chunk:
        for Tk in options.past:
            sets = max(2, -(-200_000_000 // (2 * (Tk + Tq) * HK * D * 2)))
            case = shape(skim, Tq, Tk, options.budget, options.queries, options.every, sets)
            answer = time(case.calls, sets, options.replays)
            results.append({'Tq': Tq, 'Tk': Tk, 'methods': answer})
            print(f'{Tq} x {Tk}: ' + listed(answer), flush=True)
            del case
            torch.cuda.empty_cache()
    write(options, results)


if __name__ == '__main__':
    main()
