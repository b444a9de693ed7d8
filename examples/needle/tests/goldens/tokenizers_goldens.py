#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes small vocabularies as GGUF files, each with a text in several scripts and its tokens by the PyPI package `tokenizers`:
byte-level BPE with each way of splitting words that the engine knows, and SentencePiece-style BPE. Then such vocabularies as
model directories, shaped like those of the models whose names they have.

  ./tokenizers_goldens.py DIRECTORY
"""
import json
import random
import sys
from pathlib import Path

import gguf
import tokenizers
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors,
                        trainers)

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
    model = json.loads(made.to_str())["model"]
    vocabulary = [piece for piece, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(vocabulary) - 259)
    # Pieces are numbered in the order in which they were merged, which is what scores say.
    write(directory / "sentence.gguf", "llama", vocabulary, sample, made.encode(sample, add_special_tokens=False).ids,
          scores=[-float(i) for i in range(len(vocabulary))], token_type=types, add_space_prefix=False, bos_token_id=1,
          eos_token_id=2)


SPACE = "\u2581"
SPECIAL = ["<end>", "<begin>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|start_header_id|>",
           "<|end_header_id|>", "<|eot_id|>"]  # every chat form's
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"


def texts(sample):
    return [sample[:700], sample[-500:], "", " ", "a", "  two  blanks ", "<end> <|im_start|>user</s> <0x41>",
            "\x04\U00041234x\x13\x14",
            "it'\u017f IT'LL we'RE \u180e\u180e x\u0085\u2028y \u00a0z\u3000", "def f(x):\n    return x*1234567890  \n\n\n",
            "cafe\u0301 A\u030a\u0323 \u212b \u1112\u1161\u11ab \uac00\u11a8 \u0958 \u0bc6\u0bbe q\u0307\u0323 \uf900 \u0344",
            "a<tool>b <tool> <tool><toolbox>c\n\n\nd <tool>", "\u2581\u2581x \u2581", "  <tool>  y", " <tool><tool>z"]


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def bytes_last(**options):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, **options)


def model_directory(directory, name, made, sample, alphabet, size, config, older=False, begin=None):
    """Trains, and writes the files and what they give."""
    bytes_too = [f"<0x{byte:02X}>" for byte in range(256)] if made.model.byte_fallback else []
    made.train_from_iterator([sample], trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL + bytes_too, initial_alphabet=alphabet, limit_alphabet=len(alphabet),
        max_token_length=12, show_progress=False))
    file = json.loads(made.to_str())
    file["added_tokens"] = [each for each in file["added_tokens"] if each["content"] not in bytes_too]
    if older:  # as GPT-2's and Llama 2's are
        file["model"]["merges"] = [" ".join(each) for each in file["model"]["merges"]]
        for field in ("type", "ignore_merges", "byte_fallback"):
            if field != "byte_fallback" or not bytes_too:
                file["model"].pop(field)
    made = Tokenizer.from_str(json.dumps(file))
    if name in ("qwen2", "gemma"):
        made.add_tokens([AddedToken(each, normalized=False) for each in ("<tool>", "<toolbox>", "\n\n", "\u2581\u2581")])
    if name == "smollm2":
        made.add_tokens(["<tool>", "<toolbox>"])
        made.add_tokens([AddedToken("\n\n", normalized=False)])
    if begin:
        made.post_processor = processors.TemplateProcessing(single=f"{begin} $A",
                                                                special_tokens=[(begin, made.token_to_id(begin))])
    path = directory / name
    path.mkdir(exist_ok=True)
    (path / "tokenizer.json").write_text(json.dumps({**json.loads(made.to_str()), "model": file["model"]}, ensure_ascii=False,
                                                    separators=(",", ":")) + "\n")
    (path / "tokenizer_config.json").write_text(json.dumps(config) + "\n")
    made.encode_special_tokens = True  # names of special tokens are text
    all_ids = [made.encode(each, add_special_tokens=False).ids for each in texts(sample)]
    decoded = [made.decode(each, skip_special_tokens=False) for each in all_ids]
    golden = {"tokenizers": tokenizers.__version__, "ids": all_ids,
              "decoded": [each if "\ufffd" not in each else None for each in decoded],  # which stands for what is no UTF-8
              "begin": 1 if config.get("add_bos_token") else (made.encode("").ids or [-1])[0], "end": made.token_to_id("<end>")}
    (path / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


def byte_level_directories(directory, sample):
    every = pre_tokenizers.ByteLevel.alphabet()
    some = [each for each in every if each not in "\u0104\u0113\u00f1"]  # SmolLM2's lacks bytes too
    ends = {"eos_token": "<end>", "bos_token": "<begin>"}

    def made(splits, normalizer=None, **options):
        result = Tokenizer(models.BPE(**options))
        if normalizer:
            result.normalizer = normalizer
        result.pre_tokenizer = pre_tokenizers.Sequence(splits) if len(splits) > 1 else splits[0]
        result.decoder = decoders.ByteLevel()
        return result

    model_directory(directory, "gpt-2", made([bytes_last()]), sample, every, 400, {**ends, "add_bos_token": False}, older=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    model_directory(directory, "smollm2", made([digits, bytes_last()]), sample, some, 450, {**ends, "add_prefix_space": False})
    words = [split(CONTRACTIONS + r"\p{N}{1,3}" + REST), bytes_last(use_regex=False)]
    model_directory(directory, "llama-3", made(words, ignore_merges=True), sample, every, 450, ends, begin="<begin>")
    words = [split(CONTRACTIONS + r"\p{N}" + REST), bytes_last(use_regex=False)]
    model_directory(directory, "qwen2", made(words, normalizers.NFC()), sample, every, 450,
                    {**ends, "add_bos_token": False, "bos_token": None})


def sentence_directories(directory, sample):
    blanks = normalizers.Replace(" ", SPACE)
    common = [c for c in sorted(set(sample.replace(" ", SPACE))) if ord(c) < 0x250 or c == SPACE]
    ends = {"eos_token": {"content": "<end>"}, "bos_token": {"content": "<begin>"}}

    def made(normalizer, splits, strip):
        result = Tokenizer(models.BPE(byte_fallback=True, unk_token="<end>", fuse_unk=True))
        if normalizer:
            result.normalizer = normalizer
        if splits:
            result.pre_tokenizer = splits
        result.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()] +
                                           ([decoders.Strip(" ", 1, 0)] if strip else []))
        return result

    model_directory(directory, "llama-2", made(normalizers.Sequence([normalizers.Prepend(SPACE), blanks]), None, True), sample,
                    common, 700, {**ends, "add_bos_token": True, "add_eos_token": False}, older=True)
    model_directory(directory, "gemma", made(blanks, pre_tokenizers.Split(" ", "merged_with_previous"), False), sample, common,
                    700, ends, begin="<begin>")
    for scheme, whole in (("first", True), ("always", False)):
        spaces = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=not whole)
        model_directory(directory, "metaspace-" + scheme, made(None, spaces, True), sample, common, 600, ends)


if __name__ == "__main__":
    folder, sample = Path(sys.argv[1]), text()
    for each, patterns in WORDS.items():
        byte_level(folder, each, patterns, sample)
    sentences(folder, sample)
    folder /= "vocabularies"
    folder.mkdir(exist_ok=True)
    (folder / "texts.json").write_text(json.dumps(texts(sample)) + "\n")
    byte_level_directories(folder, sample)
    sentence_directories(folder, sample)
