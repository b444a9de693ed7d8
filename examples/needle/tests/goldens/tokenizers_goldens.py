#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes small vocabularies as GGUF files, each with a text in several scripts and its tokens by the PyPI package `tokenizers`:
byte-level BPE with each way of splitting words that the engine knows, and SentencePiece-style BPE.

  ./tokenizers_goldens.py DIRECTORY
"""
import random
import sys
from pathlib import Path

import gguf
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
LETTERS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = {"gpt-2": [GPT2], "smollm": [r"\p{N}", GPT2], "llama-bpe": [LETTERS + r"\p{N}{1,3}" + REST],
         "qwen2": [LETTERS + r"\p{N}" + REST]}


def text():
    draw = random.Random(3)
    prose = ("Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: "
             "'and what is the use of a book,' thought Alice 'without pictures or conversations?' It's 1865, they've said "
             "we'll see; I'm sure he'd have 12345 reasons.\n\n\tint main() { return x[10] + y->z; }  // end\r\n")
    scripts = ("na\u00efve caf\u00e9 \u2014 \u201cquotes\u201d \u2026 \u03a9\u03bc\u03ad\u03b3\u03b1 \u043f\u0440\u0438\u0432\u0435\u0442 "
               "\u4f60\u597d\uff0c\u4e16\u754c\uff01 \u3053\u3093\u306b\u3061\u306f \uc548\ub155 \u05e9\u05dc\u05d5\u05dd "
               "\u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938\u094d\u0924\u0947 \U0001f600\U0001f1e9\U0001f1ea \u0661\u0662 x\u00b2   \t\t\n\n\n ")
    noise = "".join(chr(draw.choice([draw.randrange(32, 127), draw.randrange(0xa1, 0x800), draw.randrange(0x4e00, 0x9fff),
                                     0x1f300 + draw.randrange(0xff), 10, 32, 32])) for _ in range(2000))
    return (prose + scripts) * 3 + noise


def write(path, kind, vocabulary, sample, ids, **values):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(vocabulary)
    for name, value in values.items():
        key = "tokenizer.ggml." + name
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.add_string("test.text", sample)
    writer.add_array("test.ids", ids)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def byte_level(directory, name, patterns, sample):
    made = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(each), "isolated") for each in patterns] +
        [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator([sample], trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    import json
    model = json.loads(made.to_str())["model"]
    vocabulary = [piece for piece, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    types = [3 if piece == "<end>" else 1 for piece in vocabulary]
    write(directory / f"{name}.gguf", "gpt2", vocabulary, sample, made.encode(sample).ids, pre=name, merges=merges,
          token_type=types, eos_token_id=0)


def sentences(directory, sample):
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=False))
    made.normalizer = normalizers.Replace(" ", "\u2581")
    alphabet = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    common = [c for c in sorted(set(sample.replace(" ", "\u2581"))) if ord(c) < 0x700 or c == "\u2581"]
    made.train_from_iterator([sample], trainers.BpeTrainer(
        vocab_size=900, special_tokens=alphabet, initial_alphabet=common, limit_alphabet=len(common), show_progress=False,
        max_token_length=12))
    import json
    model = json.loads(made.to_str())["model"]
    vocabulary = [piece for piece, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(vocabulary) - 259)
    # Pieces are numbered in the order in which they were merged, which is what scores say.
    write(directory / "sentence.gguf", "llama", vocabulary, sample, made.encode(sample, add_special_tokens=False).ids,
          scores=[-float(i) for i in range(len(vocabulary))], token_type=types, add_space_prefix=False, bos_token_id=1,
          eos_token_id=2)


if __name__ == "__main__":
    folder, sample = Path(sys.argv[1]), text()
    for each, patterns in WORDS.items():
        byte_level(folder, each, patterns, sample)
    sentences(folder, sample)
