#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes small random models of each architecture that the engine knows, as a checkpoint, some as a GGUF file too, each with
the logits that the PyPI package `transformers` computes from it in f32.

  ./transformers_goldens.py DIRECTORY    (needs torch, transformers, gguf)
"""
import json
import math
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers

TOKENS, VOCABULARY = 40, 40
SIZES = dict(vocab_size=VOCABULARY, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=6,
             num_key_value_heads=2, head_dim=8, max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=1,
             eos_token_id=2, pad_token_id=0)
LLAMA3 = dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)
MODELS = {
    "llama": (transformers.LlamaConfig, dict(tie_word_embeddings=False, rope_parameters=dict(rope_type="default", rope_theta=300.0))),
    "llama3": (transformers.LlamaConfig, dict(tie_word_embeddings=True, rope_parameters=LLAMA3)),
    "qwen2": (transformers.Qwen2Config, dict(tie_word_embeddings=True, head_dim=4)),
    "qwen3": (transformers.Qwen3Config, dict(tie_word_embeddings=False, attention_bias=False)),
    "gemma3": (transformers.Gemma3TextConfig,
               dict(num_hidden_layers=3, layer_types=["sliding_attention", "sliding_attention", "full_attention"],
                    sliding_window=8, query_pre_attn_scalar=16, tie_word_embeddings=True,
                    rope_parameters=dict(full_attention=dict(rope_type="linear", factor=4.0, rope_theta=1000.0),
                                         sliding_attention=dict(rope_type="default", rope_theta=100.0)))),
}
GGUF = ("llama3", "qwen3", "gemma3")
NAMES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
         "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
GEMMA_NAMES = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
               "post_feedforward_layernorm": "post_ffw_norm"}


def random_model(kind, settings, seed):
    torch.manual_seed(seed)
    config = kind(**{**SIZES, **settings})
    config.attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    gemma = isinstance(config, transformers.Gemma3TextConfig)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.normal_(0 if gemma else 1, 0.3)
            elif weight.dim() == 1:
                weight.normal_(0, 0.5)
            else:
                weight.normal_(0, 1.5 / math.sqrt(weight.shape[1]))
    return model.bfloat16().eval()  # what is stored


def side_by_side(weight, heads):
    """llama.cpp's order of a head's rows: the two numbers that turn together lie side by side."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path, architecture, model):
    c = model.config
    gemma = architecture == "gemma3"
    writer = gguf.GGUFWriter(path, "llama" if architecture == "llama3" else architecture)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    head = model.model.layers[0].self_attn.head_dim
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    rope = c.rope_parameters["full_attention"] if gemma else c.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if gemma:
        writer.add_sliding_window(c.sliding_window)
        writer.add_uint32("gemma3.attention.sliding_window_pattern", 3)
        writer.add_float32("gemma3.rope.freq_base_swa", c.rope_parameters["sliding_attention"]["rope_theta"])
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    names = {**NAMES, **(GEMMA_NAMES if gemma else {})}
    for name, weight in model.state_dict().items():
        weight = weight.float().numpy()
        if gemma and name.endswith("norm.weight"):
            weight = weight + 1
        if gemma and "q_norm" in name:  # a GGUF file has no other scale of queries than the head's width
            weight = weight * math.sqrt(head / c.query_pre_attn_scalar)
        whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
                 "lm_head.weight": "output.weight"}
        if name in whole:
            if name != "lm_head.weight" or not c.tie_word_embeddings:
                writer.add_tensor(whole[name], weight)
            continue
        _, _, layer, part = name.split(".", 3)
        part, ending = part.rsplit(".", 1)
        if architecture.startswith("llama") and part in ("self_attn.q_proj", "self_attn.k_proj"):
            weight = side_by_side(weight, c.num_attention_heads if "q_proj" in part else c.num_key_value_heads)
        writer.add_tensor(f"blk.{layer}.{names[part]}.{ending}", np.ascontiguousarray(weight))
    if architecture == "llama3":
        plain = rope["rope_theta"] ** (-torch.arange(0, head, 2) / head)
        scaled = model.model.rotary_emb.inv_freq.float()
        writer.add_tensor("rope_freqs.weight", (plain / scaled).float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def older(config):
    """config.json as transformers 4 wrote it."""
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:
        config["rope_theta"] = rope["full_attention"]["rope_theta"]
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
        del config["layer_types"]
        config["sliding_window_pattern"] = 3
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    return config


def main():
    for seed, (name, (kind, settings)) in enumerate(MODELS.items()):
        directory = Path(sys.argv[1]) / name
        random_model(kind, settings, seed).save_pretrained(directory)
        # Anew in f32: what is no weight, such as RoPE's frequencies, was rounded with them.
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        (directory / "generation_config.json").unlink(missing_ok=True)
        config = json.loads((directory / "config.json").read_text())
        (directory / "config_4.json").write_text(json.dumps(older(config), indent=1) + "\n")
        if name in GGUF:
            write_gguf(directory / "model.gguf", name, model)
        tokens = torch.randint(3, VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            logits = model(tokens).logits[0]
        golden = {"transformers": transformers.__version__, "tokens": tokens[0].tolist(),
                  "logits": [[float(f"{x:.7g}") for x in row] for row in logits.tolist()]}
        (directory / "golden.json").write_text(json.dumps(golden) + "\n")


main()
