"""llama_cpp.py MODEL_DIR GGUF_DIR [INFER]: greedy answers of llama.cpp (xllamacpp) beside those of `infer generate`, without pictures.

GGUF_DIR is what `infer export --model MODEL_DIR --output GGUF_DIR` wrote; INFER is the program (target/release/infer).
"""
import json
import subprocess
import sys
import urllib.request

import xllamacpp

model, gguf = sys.argv[1:3]
infer = sys.argv[3] if len(sys.argv) > 3 else "target/release/infer"
TOKENS = 48
QUESTIONS = [
    "What is the capital of France?",
    "Write a short poem about 12 cats, 345 dogs and the year 2024.",
    "List three fruits.",
    "Explain gravity to a child in two sentences.",
    "Tell me a joke!",
    "def fib(n):  # it's C++11's `auto`?",
    "Warum ist der Himmel blau? Größe: 3,14€",
]
params = xllamacpp.CommonParams()
params.model.path = f"{gguf}/model-f16.gguf"
params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 1024, 1, False, 0
server = xllamacpp.Server(params)
same = 0
for question in QUESTIONS:
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    prompt = f"{system}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    body = json.dumps({"prompt": prompt, "n_predict": TOKENS, "temperature": 0}).encode()
    request = urllib.request.Request(server.listening_address + "/completion", body, {"Content-Type": "application/json"})
    theirs = json.load(urllib.request.urlopen(request))["content"]
    command = [infer, "generate", "--model", model, "--prompt", question, "--max-new-tokens", str(TOKENS), "--json"]
    ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["text"]
    same += ours == theirs
    print("same " if ours == theirs else "OTHER", repr(theirs), "" if ours == theirs else repr(ours))
print(f"{same} of {len(QUESTIONS)} answers are the same")
