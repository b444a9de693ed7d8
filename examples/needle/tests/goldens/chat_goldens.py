#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes chat.json: conversations of one turn as `transformers` puts them by templates that have the structure of those which
are published with SmolLM2, Qwen, Gemma and Llama 3, and their tokens in the vocabularies that tokenizers_goldens.py made.

  ./chat_goldens.py DIRECTORY [GGUF]

GGUF: a SmolLM2 file, whose own template must give the same.
"""
import json
import sys
from pathlib import Path

import transformers

USER = "Who wrote it, and when?\n\nIt's said that na\u00efve readers \u4f60\u597d  see 1865."

CHATML_TURNS = """
{%- for turn in messages %}
    {{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
LLAMA_TURNS = """
{%- for turn in messages %}
    {{- '<|start_header_id|>' + turn.role + '<|end_header_id|>\\n\\n' + turn.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
SMOLLM2 = ("{% for turn in messages %}{% if loop.first and turn.role != 'system' %}"
           "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
           "{{ '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>' + '\n' }}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
TEMPLATES = {  # name: (vocabulary, the token that ends a turn, template)
    "smollm2": ("smollm2", "<|im_end|>", SMOLLM2),
    # Of the places that begin a system's turn one writes its words out.
    "qwen2": ("qwen2", "<|im_end|>", """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {{- 'Be wise.' if messages[0].role != 'system' else messages[0].content }}
    {{- '\\n\\nThere are tools: ' + tools | tojson + '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nBe wise.<|im_end|>\\n' }}
{%- endif %}""" + CHATML_TURNS),
    "qwen3": ("qwen2", "<|im_end|>", """
{%- if tools %}
    {{- '<|im_start|>system\\n' + tools | tojson + '<|im_end|>\\n' }}
{%- endif %}""" + CHATML_TURNS),
    "gemma": ("gemma", "<end_of_turn>", """{{ bos_token }}
{%- for turn in messages %}
    {{- '<start_of_turn>' + ('model' if turn.role == 'assistant' else turn.role) + '\\n' }}
    {{- turn.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}"""),
    "llama3": ("llama-3", "<|eot_id|>", "{{- bos_token }}" + LLAMA_TURNS),
    "llama31": ("llama-3", "<|eot_id|>", """{{- bos_token }}
{%- set date = date_string if date_string is defined else '26 Jul 2024' %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Cutting Knowledge Date: December 2023\\n' }}
{{- 'Today Date: ' + date + '\\n\\n<|eot_id|>' }}""" + LLAMA_TURNS),
}


def main():
    folder = Path(sys.argv[1])
    messages = [{"role": "user", "content": USER}]
    goldens = {"transformers": transformers.__version__, "user": USER, "forms": {}}
    for name, (vocabulary, end, template) in TEMPLATES.items():
        file = folder / "vocabularies" / vocabulary / "tokenizer.json"
        words = transformers.PreTrainedTokenizerFast(tokenizer_file=str(file), bos_token="<begin>", eos_token="<end>",
                                                     chat_template=template)
        put = dict(add_generation_prompt=True)
        rendered = words.apply_chat_template(messages, tokenize=False, **put)
        ids = words.apply_chat_template(messages, return_dict=False, **put)
        goldens["forms"][name] = {"vocabulary": vocabulary, "end": end, "template": template, "rendered": rendered,
                                  "ids": ids}
        if name == "smollm2" and len(sys.argv) > 2:
            import gguf
            published = gguf.GGUFReader(sys.argv[2]).fields["tokenizer.chat_template"].contents()
            own = words.apply_chat_template(messages, tokenize=False, chat_template=published, **put)
            begin, rest = own.split("<|im_end|>", 1)
            spoken = begin.removeprefix("<|im_start|>system\n")
            assert own == rendered.replace("Be kind.", spoken), own
            print("as published, with", repr(spoken))
    (folder / "chat.json").write_text(json.dumps(goldens, indent=1) + "\n")


main()
