#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""llama-server with the backend says what it says without: four sequences at once, prompts that share a part with what is
cached, a prompt that outgrows its context. Arguments: llama-server, the backend, a model with f16 weights, a text."""
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

CONTEXT = 1024


class Server:
    """One llama-server, whose log is kept; `backend`: none for llama.cpp alone."""

    def __init__(self, program, model, backend=None, quoka=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        environment = {name: text for name, text in os.environ.items()
                       if name != "GGML_BACKEND_PATH" and not name.startswith("SKIM_")}
        if backend:
            environment["GGML_BACKEND_PATH"] = backend
        if quoka:
            environment["SKIM_QUOKA"] = quoka
        self.log = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen(
            [program, "-m", model, "-c", str(CONTEXT), "-np", "4", "-kvu", "-b", "256", "-ub", "256", "-t", "2", "--port",
             str(self.port), "--context-shift", "--cache-reuse", "16", "--cache-ram", "0",
             # Overrides nothing, but has the server look at GGML_BACKEND_PATH, which it does by itself only where the CPU's
             # backend is loaded too (GGML_BACKEND_DL, as in llama.cpp's releases).
             "-ot", "^$=CPU"],
            env=environment, stdout=self.log, stderr=subprocess.STDOUT)

    def __enter__(self):
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.ask("/health")
                return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        self.stop()
        raise SystemExit("llama-server did not start:\n" + self.said())

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self.process.terminate()
        self.process.wait(60)

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def ask(self, path, body=None):
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    def complete(self, prompt, tokens, slot):
        return self.ask("/completion", {"prompt": prompt, "n_predict": tokens, "temperature": 0, "id_slot": slot,
                                        "cache_prompt": True, "n_cache_reuse": 16, "ignore_eos": True})


def session(server, text):
    """What is said to four prompts at once, to prompts of which a part is cached, and past the end of the context."""
    said = {}
    parts = [text[i * 4000:i * 4000 + 700] for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: server.complete(parts[i], 16, i), range(4)))
    said["four sequences at once"] = [answer["content"] for answer in answers]
    longer = [parts[i] + text[i * 4000 + 700:i * 4000 + 1100] for i in range(2)]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda i: server.complete(longer[i], 16, i), range(2)))
    said["prompts whose beginning is cached"] = [answer["content"] for answer in answers]
    cached = [answer["timings"]["cache_n"] for answer in answers]
    kept, left_out = longer[0].index(" ", 200), longer[0].index(" ", 500)
    moved = server.complete(longer[0][:kept] + longer[0][left_out:], 16, 0)
    said["a prompt whose end is cached elsewhere, and moved"] = moved["content"]
    cached.append(moved["timings"]["cache_n"])
    outgrown = server.complete(text[20000:23600], 160, 0)
    said["a context that is outgrown, and shifted"] = outgrown["content"][-80:]
    return said, cached, outgrown


def main():
    program, backend, model, path = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        text = file.read()
    good = True

    def expect(holds, what):
        nonlocal good
        good &= bool(holds)
        print("ok  " if holds else "FAIL", what, flush=True)

    with Server(program, model) as server:
        alone, _, _ = session(server, text)
        expect("skim:" not in server.said(), "llama.cpp is alone at first")
    with Server(program, model, backend, "dense") as server:
        beside, cached, outgrown = session(server, text)
        log = server.said()
    expect("skim: dense attention" in log, "the backend is loaded")
    expect("set to disabled" not in log, "flash attention stays on")
    expect(min(cached) > 60, f"tokens taken from the cache: {cached}")
    expect(outgrown["truncated"], f"a prompt of {outgrown['tokens_evaluated']} tokens in a context of {CONTEXT}, which is shifted")
    for name, answer in alone.items():
        expect(beside[name] == answer, f"{name}: {answer!r}" + ("" if beside[name] == answer else f" and {beside[name]!r}"))
    with Server(program, model, backend, "budget=16,queries=8,sinks=0,recent=0,every=64") as server:
        sparse, _, _ = session(server, text)
    expect(sparse != alone, "with 16 keys it says something else: its nodes come to the backend")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
