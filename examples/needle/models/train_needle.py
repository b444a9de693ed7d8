#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains a needle model: a 7M-parameter decoder that answers needle-in-a-haystack questions over generated text.

    python3 train_needle.py OUT_DIR SECONDS [llama|qwen2]

writes OUT_DIR/model.safetensors and OUT_DIR/config.json, which `needle --model OUT_DIR` reads. `qwen2` has biases on the
query, key and value projections. Needs a CUDA GPU, about 16 CPU cores for the data, and the packages numpy, torch and
safetensors. On one H200, 230 seconds gave 100 % retrieval up to 8192 tokens. The committed models were made by

    python3 train_needle.py llama 230 llama
    python3 train_needle.py qwen2 230 qwen2

Training ends by the clock, so a second run gives another model of the same quality, not the same bits.
"""
import argparse
import json
import math
import multiprocessing
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

# Word ids; see README.md. Words are integers and have no spelling.
VOCABULARY = 1152
PAD, BOS, STOP, NOTE, CODE, OF, QUESTION, THE, NEAR = 0, 1, 3, 4, 5, 6, 8, 11, 13
ADJECTIVES, ADJECTIVE_COUNT = 32, 96
NOUNS, NOUN_COUNT = 128, 256
VERBS, VERB_COUNT = 384, 96
PLACES, PLACE_COUNT = 480, 96
KEYS, KEY_COUNT = 576, 256
VALUES, VALUE_COUNT = 832, 256

WIDTH, LAYERS, QUERY_HEADS, KV_HEADS, HEAD_DIM, FFN_WIDTH = 256, 6, 8, 2, 64, 1024
ROPE_THETA, NORM_EPSILON = 500000.0, 1e-5

LEARNING_RATE, WARMUP_STEPS = 2e-3, 200
ANSWER_WEIGHT = 5  # the loss of an answer token, relative to any other
# (tokens in a prompt, prompts in a batch, share of the time)
STAGES = [(256, 512, 0.40), (1024, 128, 0.30), (4096, 32, 0.18), (8192, 16, 0.12)]
DATA_WORKERS = 14


def filler_sentences(rng, paragraphs=60000):
    """Paragraphs about a small cast each: 'the ADJ NOUN VERB the ADJ NOUN [near the PLACE] .'"""
    sentences = []
    for _ in range(paragraphs):
        cast = rng.integers(0, NOUN_COUNT, 4)
        adjectives = rng.integers(0, ADJECTIVE_COUNT, 4)
        places = rng.integers(0, PLACE_COUNT, 2)
        for _ in range(rng.integers(3, 9)):
            subject, other = rng.integers(0, 4, 2)
            verb = (cast[subject] * 7 + rng.integers(0, 4)) % VERB_COUNT  # one of four that belong to the subject
            sentence = [THE, ADJECTIVES + adjectives[subject], NOUNS + cast[subject], VERBS + verb,
                        THE, ADJECTIVES + adjectives[other], NOUNS + cast[other]]
            if rng.random() < 0.5:
                sentence += [NEAR, THE, PLACES + places[rng.integers(0, 2)]]
            sentences.append(sentence + [STOP])
    return sentences


class Prompts:
    """Endless prompts; the same seed gives the same ones."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.filler = filler_sentences(self.rng)

    def needle_prompt(self, tokens, needles, questions):
        """The prompt and, for each token, whether it is an answer."""
        rng = self.rng
        keys = rng.permutation(KEY_COUNT)[:needles]
        values = rng.integers(0, VALUE_COUNT, (needles, 2))
        facts = [[KEYS + int(key), VALUES + int(first), VALUES + int(second)]
                 for key, (first, second) in zip(keys, values)]
        questions = min(questions, needles)
        room = tokens - 1 - 8 * questions - 8 * needles
        sentences, used = [], 0
        at = int(rng.integers(0, len(self.filler)))
        while used + len(self.filler[at % len(self.filler)]) <= room:
            sentences.append(self.filler[at % len(self.filler)])
            used += len(sentences[-1])
            at += 1
        gaps = sorted(rng.integers(0, len(sentences) + 1, needles))
        prompt, placed = [BOS], 0
        for gap, sentence in enumerate(sentences + [[]]):
            while placed < needles and gaps[placed] == gap:
                prompt += [NOTE, THE, CODE, OF] + facts[placed] + [STOP]
                placed += 1
            prompt += sentence
        is_answer = [0] * len(prompt)
        for asked in rng.permutation(needles)[:questions]:
            prompt += [QUESTION, THE, CODE, OF] + facts[asked] + [STOP]
            is_answer += [0] * 5 + [1] * 2 + [0]
        padding = tokens - len(prompt)  # negative where a short training prompt has more needles than room
        return (prompt + [PAD] * padding)[:tokens], (is_answer + [0] * padding)[:tokens]

    def repetition(self, tokens):
        """A random run of words, repeated: teaches copying early."""
        length = int(self.rng.integers(16, tokens // 2))
        words = KEYS + self.rng.integers(0, KEY_COUNT + VALUE_COUNT, length)
        prompt = [BOS] + list(np.tile(words, tokens // length + 1))[:tokens - 1]
        return prompt, [0] * (length + 1) + [1] * (tokens - length - 1)

    def training_prompt(self, tokens):
        if self.rng.random() < (0.5 if tokens <= 256 else 0.08):
            return self.repetition(tokens)
        needles = int(self.rng.integers(4, min(240, max(5, tokens // 20))))
        return self.needle_prompt(tokens, needles, min(needles, max(8, tokens // 24)))

    def batch(self, prompts, tokens, needles=None, questions=None):
        """Training prompts, or with `needles` and `questions` prompts for evaluation; [prompts, tokens] each."""
        rows = [self.training_prompt(tokens) if needles is None else self.needle_prompt(tokens, needles, questions)
                for _ in range(prompts)]
        return (np.array([prompt for prompt, _ in rows], dtype=np.int16),
                np.array([is_answer for _, is_answer in rows], dtype=np.int8))


def rotate(x, cos, sin):
    """RoPE of x [batch, heads, tokens, head dim]; element i turns with element i + head dim / 2."""
    first, second = x[..., :HEAD_DIM // 2], x[..., HEAD_DIM // 2:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return F.rms_norm(x, (WIDTH,), self.weight, NORM_EPSILON)


class Layer(nn.Module):
    def __init__(self, qkv_bias):
        super().__init__()
        self.input_layernorm = Norm()
        self.q_proj = nn.Linear(WIDTH, QUERY_HEADS * HEAD_DIM, bias=qkv_bias)
        self.k_proj = nn.Linear(WIDTH, KV_HEADS * HEAD_DIM, bias=qkv_bias)
        self.v_proj = nn.Linear(WIDTH, KV_HEADS * HEAD_DIM, bias=qkv_bias)
        self.o_proj = nn.Linear(QUERY_HEADS * HEAD_DIM, WIDTH, bias=False)
        self.post_attention_layernorm = Norm()
        self.gate_proj = nn.Linear(WIDTH, FFN_WIDTH, bias=False)
        self.up_proj = nn.Linear(WIDTH, FFN_WIDTH, bias=False)
        self.down_proj = nn.Linear(FFN_WIDTH, WIDTH, bias=False)

    def forward(self, x, cos, sin):
        batch, tokens, _ = x.shape
        h = self.input_layernorm(x)
        q = self.q_proj(h).view(batch, tokens, QUERY_HEADS, HEAD_DIM).transpose(1, 2)
        k = self.k_proj(h).view(batch, tokens, KV_HEADS, HEAD_DIM).transpose(1, 2)
        v = self.v_proj(h).view(batch, tokens, KV_HEADS, HEAD_DIM).transpose(1, 2)
        heads = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True,
                                               enable_gqa=True)
        x = x + self.o_proj(heads.transpose(1, 2).reshape(batch, tokens, QUERY_HEADS * HEAD_DIM))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class NeedleModel(nn.Module):
    def __init__(self, qkv_bias):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList([Layer(qkv_bias) for _ in range(LAYERS)])
        self.norm = Norm()
        for name, parameter in self.named_parameters():
            if name.endswith('v_proj.bias'):
                nn.init.zeros_(parameter)
            elif name.endswith('bias'):
                nn.init.normal_(parameter, std=0.5)  # gives queries and keys shared directions from the start
            elif parameter.dim() == 2:
                residual = 'o_proj' in name or 'down_proj' in name
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * LAYERS) if residual else 1))

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1], device=tokens.device).float()
        frequencies = ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2, device=tokens.device).float() / HEAD_DIM)
        angles = places[:, None] * frequencies
        cos, sin = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x) @ self.embed_tokens.weight.T


def token_losses(logits, targets):
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction='none').view(targets.shape)


@torch.no_grad()
def evaluate(model, prompts, tokens):
    """Accuracy of answer tokens, and mean negative log-likelihood of all others but PAD."""
    x, is_answer = (torch.tensor(part.astype(np.int64), device='cuda') for part in prompts.batch(8, tokens, 16, 8))
    targets, is_answer = x[:, 1:], is_answer[:, 1:] > 0
    with torch.autocast('cuda', torch.bfloat16):
        logits = model(x[:, :-1])
    accuracy = (logits.argmax(-1) == targets)[is_answer].float().mean().item()
    nll = token_losses(logits, targets)[~is_answer & (targets != PAD)].mean().item()
    return accuracy, nll


def produce(seed, queue, stage):
    """A data process: batches of the current stage, without end."""
    prompts = Prompts(seed)
    while True:
        tokens, count, _ = STAGES[stage.value]
        queue.put((tokens, *prompts.batch(count, tokens)))


def make_optimizer(model):
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW([{'params': matrices}, {'params': vectors, 'weight_decay': 0.0}], lr=LEARNING_RATE,
                             betas=(0.9, 0.95), weight_decay=0.05, fused=True)


def train(model, seconds, queue, stage, held_out):
    compiled = torch.compile(model, dynamic=False)
    optimizer = make_optimizer(model)
    begin = last_report = time.time()
    stage_ends = np.cumsum([share for _, _, share in STAGES])
    step = 0
    while (done := (time.time() - begin) / seconds) < 1:
        stage.value = min(int(np.searchsorted(stage_ends, done, side='right')), len(STAGES) - 1)
        rate = LEARNING_RATE * min(1, (step + 1) / WARMUP_STEPS) * (0.5 * (1 + math.cos(math.pi * done)) * 0.97 + 0.03)
        for group in optimizer.param_groups:
            group['lr'] = rate
        tokens, x, is_answer = queue.get()
        x = torch.from_numpy(x.astype(np.int64)).to('cuda', non_blocking=True)
        is_answer = torch.from_numpy(is_answer.astype(np.float32)).to('cuda', non_blocking=True)
        targets = x[:, 1:]
        with torch.autocast('cuda', torch.bfloat16):
            losses = token_losses(compiled(x[:, :-1]), targets)
            weights = (targets != PAD).float() * (1 + (ANSWER_WEIGHT - 1) * is_answer[:, 1:])
            loss = (losses * weights).sum() / weights.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 250 == 0 or time.time() - last_report > 30:
            last_report = time.time()
            accuracy, nll = evaluate(model, held_out, tokens)
            print(f'{last_report - begin:.0f} s, step {step}, {tokens} tokens: loss {loss.item():.3f}, '
                  f'accuracy {accuracy:.3f}, nll {nll:.3f}', flush=True)


def hugging_face_name(name):
    parts = name.split('.')
    if parts[0] != 'layers':
        return 'model.' + name
    kind = parts[2]
    module = {'q': 'self_attn.', 'k': 'self_attn.', 'v': 'self_attn.', 'o': 'self_attn.',
              'gate': 'mlp.', 'up': 'mlp.', 'down': 'mlp.'}.get(kind.removesuffix('_proj'), '')
    return f'model.layers.{parts[1]}.{module}{kind}.{parts[3]}'


def save(model, directory, architecture):
    os.makedirs(directory, exist_ok=True)
    tensors = {hugging_face_name(name): value.to(torch.bfloat16).cpu().contiguous()
               for name, value in model.state_dict().items()}
    save_file(tensors, f'{directory}/model.safetensors')
    config = {
        'architectures': [{'llama': 'LlamaForCausalLM', 'qwen2': 'Qwen2ForCausalLM'}[architecture]],
        'model_type': architecture,
        'hidden_act': 'silu',
        'hidden_size': WIDTH,
        'intermediate_size': FFN_WIDTH,
        'num_hidden_layers': LAYERS,
        'num_attention_heads': QUERY_HEADS,
        'num_key_value_heads': KV_HEADS,
        'head_dim': HEAD_DIM,
        'vocab_size': VOCABULARY,
        'rms_norm_eps': NORM_EPSILON,
        'rope_theta': ROPE_THETA,
        'tie_word_embeddings': True,
        'max_position_embeddings': 8192,
        'bos_token_id': BOS,
        'torch_dtype': 'bfloat16',
    }
    if architecture == 'qwen2':
        config['attention_bias'] = True
    with open(f'{directory}/config.json', 'w') as file:
        json.dump(config, file, indent=2)
        file.write('\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('directory', metavar='OUT_DIR')
    parser.add_argument('seconds', metavar='SECONDS', type=float, help='of the whole run, start and evaluation included')
    parser.add_argument('architecture', nargs='?', choices=['llama', 'qwen2'], default='llama')
    arguments = parser.parse_args()

    start = time.time()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision('high')
    stage, queue = multiprocessing.Value('i', 0), multiprocessing.Queue(32)
    workers = [multiprocessing.Process(target=produce, args=(seed + 1, queue, stage), daemon=True)
               for seed in range(DATA_WORKERS)]
    for worker in workers:
        worker.start()
    model = NeedleModel(qkv_bias=arguments.architecture == 'qwen2').to('cuda')
    held_out = Prompts(999)
    final_evaluation = 25  # seconds
    train(model, arguments.seconds - final_evaluation - (time.time() - start), queue, stage, held_out)
    for tokens in (1024, 4096, 8192, 16384, 32768):
        accuracy, nll = evaluate(model, held_out, tokens)
        print(f'{tokens} tokens: accuracy {accuracy:.3f}, nll {nll:.3f}', flush=True)
    save(model, arguments.directory, arguments.architecture)
    for worker in workers:
        worker.kill()


if __name__ == '__main__':
    main()
