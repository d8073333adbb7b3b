"""llama_cpp_tokens.py (GGUF_DIR MODEL_DIR)…: ids of llama.cpp (through xllamacpp) and of transformers for difficult texts.

Prints JSON: for each model the number of `compared` texts and those with `different` ids. Texts are encoded with the tokenizer's
own start and without.
"""
import json
import pathlib
import sys
import urllib.request

import xllamacpp
from transformers import AutoTokenizer

TEXTS = [
    "In 1234567 years, they'll've 12 \u00e9clairs\n\n  and   \u4e2d\u6587 \U0001f642 tabs\there",
    "a small purple ring. It's <image>\nwhat  is",
    " leading, trailing ",
    "USER: ok ASSISTANT: a large red circle on the left</s>",
    "x\r\n y",
]


def compare(gguf_dir, model_dir):
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf_dir / "model-f16.gguf")
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 128, 1, False, 0
    params.cpuparams.n_threads = 1
    server, tokenizer = xllamacpp.Server(params), AutoTokenizer.from_pretrained(model_dir)
    different = []
    for text in TEXTS:
        for start in (True, False):
            body = json.dumps({"content": text, "add_special": start, "parse_special": True}).encode()
            request = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request) as answer:
                found = json.load(answer)["tokens"]
            expected = tokenizer(text, add_special_tokens=start)["input_ids"]
            if found != expected:
                different.append([text, found, expected])
    return {"compared": 2 * len(TEXTS), "different": different}


pairs = list(map(pathlib.Path, sys.argv[1:]))
json.dump([compare(*pair) for pair in zip(pairs[::2], pairs[1::2])], sys.stdout)
