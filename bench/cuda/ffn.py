#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times FastForward on one GPU beside the GEMMs of the dense FFN: python3 bench/cuda/ffn.py [--json FILE] [--rows 128 2048]

Half of the neurons, everything included: predictor, choice and compensator. bf16, blocks of 128 tokens, all sparse. The
peer is cuBLAS's three products alone, without the activation, of the faster of two layouts of the down projection. Every
time is of a captured graph, the median of replays, in microseconds a call, all methods in turn; weights are larger than the
L2 cache.
"""
import argparse
import ctypes

import torch

from run import build, demand, listed, parse, time, write


class layer(ctypes.Structure):
    """As `ffn_layer` of library.cu."""
    _fields_ = [(name, ctypes.c_void_p) for name in ('x', 'gate', 'up', 'down', 'query', 'w1', 'w2', 'c1', 'c2', 'out')]
    _fields_ += [(name, ctypes.c_int64) for name in ('M', 'd', 'f', 'rank', 'C', 'block')] + [('share', ctypes.c_double)]


class shape:
    """Tensors of one shape, and the calls that are timed on them."""

    def __init__(self, skim, M, d, f, block, share):
        make = lambda rows, columns, size: torch.randn(rows, columns, device='cuda', dtype=torch.bfloat16) * size
        rank, C = 1 << (d // 16 - 1).bit_length(), max(1, d // 8)
        self.tensors = {'x': make(M, d, 1), 'gate': make(f, d, d ** -0.5), 'up': make(f, d, d ** -0.5),
                        'down': make(f, d, f ** -0.5), 'query': make(1, d, 1), 'w1': make(d, rank, d ** -0.5),
                        'w2': make(rank, f, rank ** -0.5), 'c1': make(d, C, d ** -0.5), 'c2': make(C, d, C ** -0.5),
                        'out': make(M, d, 1)}
        self.layer = layer(**{name: tensor.data_ptr() for name, tensor in self.tensors.items()}, M=M, d=d, f=f, rank=rank,
                           C=C, block=block, share=share)
        skim.skim_ffn_workspace.restype = ctypes.c_int64
        bytes_ = skim.skim_ffn_workspace(ctypes.byref(self.layer))
        blocks = -(-M // block)
        self.workspace = torch.empty(bytes_, device='cuda', dtype=torch.uint8)
        self.scores = torch.empty(blocks, f, device='cuda')
        self.lists = torch.empty(blocks * (f + 1), device='cuda', dtype=torch.int32)
        pointer = ctypes.c_void_p

        def step(number):
            stream = pointer(torch.cuda.current_stream().cuda_stream)
            demand(skim.skim_ffn(ctypes.byref(self.layer), number, pointer(self.scores.data_ptr()),
                                 pointer(self.lists.data_ptr()), pointer(self.workspace.data_ptr()),
                                 ctypes.c_int64(bytes_), stream))

        steps = {'skim fastforward': 0, 'skim score': 1, 'skim choose': 2, 'skim compute': 3, 'skim dense': 4}
        self.calls = {name: lambda i, number=number: step(number) for name, number in steps.items()}
        hidden = [torch.empty(M, f, device='cuda', dtype=torch.bfloat16) for _ in range(2)]
        out = torch.empty(M, d, device='cuda', dtype=torch.bfloat16)
        x, gate, up, down = (self.tensors[name] for name in ('x', 'gate', 'up', 'down'))
        turned = down.t().contiguous().t()  # as checkpoints have it: [d, f]

        def gemms(last):
            torch.matmul(x, gate.t(), out=hidden[0])
            torch.matmul(x, up.t(), out=hidden[1])
            torch.matmul(hidden[0], last, out=out)

        self.calls['cublas [f, d]'] = lambda i: gemms(down)
        self.calls['cublas [d, f]'] = lambda i: gemms(turned)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--rows', type=int, nargs='+', default=[128, 2048])
    parser.add_argument('--width', type=int, default=4096)
    parser.add_argument('--neurons', type=int, default=14336)
    parser.add_argument('--block', type=int, default=128)
    parser.add_argument('--share', type=float, default=0.5)
    options = parse(parser)
    skim = build(options.build)
    results = []
    for M in options.rows:
        case = shape(skim, M, options.width, options.neurons, options.block, options.share)
        answer = time(case.calls, 1, options.replays)
        peer = min(value['us'] for name, value in answer.items() if name.startswith('cublas'))
        ratio = peer / answer['skim fastforward']['us']
        results.append({'M': M, 'methods': answer, 'against_cublas': ratio})
        print(f'{M}: {listed(answer)}; {ratio:.2f}x', flush=True)
        del case
        torch.cuda.empty_cache()
    write(options, results)


if __name__ == '__main__':
    main()
