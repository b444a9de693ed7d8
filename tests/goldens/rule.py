#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""QUOKA's own rule in NumPy, in double: remakes the golden stages of the files here, or checks them.

  ./rule.py check FILE...              compares every stage with what the files hold
  ./rule.py make INPUT OUTPUT          INPUT: a safetensors file with q, k and the metadata of README.md

Needs NumPy and nothing else; reads and writes safetensors itself.
"""
import json
import struct
import sys

import numpy as np

NUMBERS = (64, 32)
BUDGETS = (512, 256)
SINKS, RECENT, SAMPLES, SMOOTH = 4, 128, 64, 3


def read(path):
    raw = open(path, "rb").read()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + size])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            bits = np.frombuffer(raw[begin:end], np.uint16).astype(np.uint32) << 16
            values = bits.view(np.float32).astype(np.float64)
        else:
            values = np.frombuffer(raw[begin:end], {"F32": np.float32, "I32": np.int32}[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return metadata, tensors


def write(path, metadata, tensors):
    header, data = {"__metadata__": metadata}, b""
    for name, values in tensors.items():
        if name in ("q", "k"):
            kind, raw = "BF16", (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
        elif values.dtype.kind == "i":
            kind, raw = "I32", values.astype(np.int32).tobytes()
        else:
            kind, raw = "F32", values.astype(np.float32).tobytes()
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    open(path, "wb").write(struct.pack("<Q", len(text)) + text + data)


def log_sum_exp(x, axis):
    most = x.max(axis=axis, keepdims=True)
    return np.squeeze(most, axis) + np.log(np.exp(x - most).sum(axis=axis))


def to_bf16(x):
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32).astype(np.float64)


def need(x, past, own, tokens):
    """x [R, D] scaled rows, row g * tokens + t; past [n, D]; own [tokens, D]: the share of attention on the past."""
    n = len(past)
    sample = past[4::max(1, n // SAMPLES)]
    before = log_sum_exp(x @ sample.T, 1) + np.log(n / len(sample))
    token = np.arange(len(x)) % tokens
    logits = np.where(np.arange(tokens)[None, :] <= token[:, None], x @ own.T, -np.inf)
    return 1 / (1 + np.exp(log_sum_exp(logits, 1) - before))


def features(x, tokens):
    heads = x.reshape(-1, tokens, x.shape[1])
    apart = heads - heads.mean(1, keepdims=True)
    rms = np.sqrt((apart**2).sum(2).mean(1))
    size = np.sqrt((heads**2).sum(2).mean(1))
    factor = np.where(rms > 1e-6 * size, 1 / np.maximum(rms, 1e-300), 0)
    return (apart * factor[:, None, None]).reshape(x.shape)


def distances(y, others):
    return ((y[:, None, :] - others[None, :, :])**2).sum(2)


def pick(y, needs, number):
    picked, gain = [], needs * (y**2).sum(1)
    while len(picked) < number:
        order = np.argsort(-gain, kind="stable")[:min(max(1, number // 4), number - len(picked))]
        picked += order.tolist()
        gain = needs * distances(y, y[picked]).min(1)
        gain[picked] = -1
    return np.array(picked)


def average(x, y, needs, picked):
    nearest = distances(y, y[picked]).argmin(1)
    queries = []
    for i, row in enumerate(picked):
        weights = needs * (nearest == i)
        queries.append(x[row] if weights.sum() <= 1e-6 else weights @ x / weights.sum())
    return np.array(queries)


def moments(queries, past):
    sample = past[16::32] if len(past[16::32]) >= 32 else past
    products = queries @ sample.T
    return products.mean(1), products.std(1, ddof=1)


def score(queries, past, mean, deviation):
    z = ((queries @ past.T - mean[:, None]) / deviation[:, None]).max(0)
    kernel, ones = np.ones(SMOOTH), np.ones(len(z))
    return np.convolve(z, kernel, "same") / np.convolve(ones, kernel, "same")


def choose(scores, budget):
    ranked = scores.copy()
    ranked[:SINKS] = ranked[len(scores) - RECENT:] = np.inf
    return np.sort(np.argsort(-ranked, kind="stable")[:budget])


def stages(metadata, q, k):
    """Yields (name, values) of every stage, KV head by KV head joined."""
    past, scale = int(metadata["past"]), float(metadata["scale"])
    tokens, heads, _ = q.shape
    group = heads // k.shape[1]
    for number in NUMBERS:
        found = {}
        for head in range(k.shape[1]):
            x = scale * q[:, head * group:(head + 1) * group].transpose(1, 0, 2).reshape(group * tokens, -1)
            before, own = k[:past, head], k[past:, head]
            needs, y = need(x, before, own, tokens), features(x, tokens)
            picked = pick(y, needs, number)
            queries = average(x, y, needs, picked)
            rounded = to_bf16(queries)
            mean, deviation = moments(rounded, before)
            scores = score(rounded, before, mean, deviation)
            unrounded = score(queries, before, *moments(queries, before))
            parts = {"need": needs, "picked": picked.astype(np.int32), "queries": queries, "mean": mean,
                     "deviation": deviation, "score": scores}
            for budget in BUDGETS:
                parts[f"list_{budget}"] = choose(scores, budget).astype(np.int32)
            parts["list_512_unrounded"] = choose(unrounded, 512).astype(np.int32)
            for name, values in parts.items():
                found.setdefault(name, []).append(values)
        for name, values in found.items():
            yield f"{name}_{number}", np.stack(values)


def check(path):
    metadata, tensors = read(path)
    worst = 0
    for name, values in stages(metadata, tensors["q"], tensors["k"]):
        stored = tensors[name]
        if values.dtype.kind == "i":
            if not np.array_equal(values, stored):
                raise SystemExit(f"{path}: {name} differs in {int((values != stored).sum())} of {stored.size} places")
        else:
            error = np.abs(values - stored).max() / np.abs(stored).max()
            worst = max(worst, error)
            if error > 1e-6:
                raise SystemExit(f"{path}: {name} is {error:.1e} of its largest value off")
    print(f"{path}: every stage agrees, floats within {worst:.0e} of their largest")


def main(arguments):
    if len(arguments) >= 2 and arguments[0] == "check":
        for path in arguments[1:]:
            check(path)
    elif len(arguments) == 3 and arguments[0] == "make":
        metadata, tensors = read(arguments[1])
        inputs = {name: tensors[name] for name in ("q", "k")}
        write(arguments[2], metadata, {**inputs, **dict(stages(metadata, tensors["q"], tensors["k"]))})
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
