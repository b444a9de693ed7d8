#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes blocks.gguf: for each type of ggml's that is read here two rows of random blocks, NAME, and the numbers that the PyPI
package `gguf` reads from them, NAME.numbers; values of every kind; names as in a model.

  ./gguf_blocks.py blocks.gguf
"""
import sys

import gguf
import numpy as np

ROWS, COLUMNS = 2, 512
NAMES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16", "F32")

draw = np.random.default_rng(7)
writer = gguf.GGUFWriter(sys.argv[1], "test")
for name in NAMES:
    kind = gguf.GGMLQuantizationType[name]
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = draw.integers(0, 256, (ROWS, COLUMNS // values, size), dtype=np.uint8)
    if name in ("F16", "BF16", "F32"):  # no NaN
        numbers = draw.standard_normal((ROWS, COLUMNS)).astype(np.float32)
        if name == "BF16":
            stored = gguf.quants.quantize(numbers, kind)
        else:
            stored = numbers.astype(np.float16) if name == "F16" else numbers
        writer.add_tensor(name, stored, raw_dtype=kind)
        expected = gguf.quants.dequantize(stored, kind)
    else:
        scales = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(name, (0,))
        for at in scales:
            halves = draw.uniform(-0.1, 0.1, blocks.shape[:2]).astype(np.float16)
            blocks[:, :, at:at + 2] = halves[:, :, None].view(np.uint8)
        stored = blocks.reshape(ROWS, -1)
        writer.add_tensor(name, stored, raw_dtype=kind)
        expected = gguf.quants.dequantize(stored, kind)
    writer.add_tensor(name + ".numbers", np.ascontiguousarray(expected, dtype=np.float32))
writer.add_uint8("test.u8", 200)
writer.add_int8("test.i8", -100)
writer.add_uint16("test.u16", 60000)
writer.add_int16("test.i16", -30000)
writer.add_uint32("test.u32", 4000000000)
writer.add_int32("test.i32", -2000000000)
writer.add_uint64("test.u64", 2**63)
writer.add_int64("test.i64", -2**40)
writer.add_float32("test.f32", 0.5)
writer.add_float64("test.f64", 0.1)
writer.add_bool("test.yes", True)
writer.add_string("test.text", "caf\u00e9")
writer.add_array("test.texts", ["a", "", "b c"])
writer.add_array("test.numbers", [1, -2, 3])
writer.add_array("test.halves", [0.5, 1.5])
writer.add_array("test.flags", [True, False])
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
