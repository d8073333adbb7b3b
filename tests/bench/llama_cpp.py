"""llama.cpp (xllamacpp) beside `infer`: greedy answers without pictures, or speed.

    llama_cpp.py answers MODEL_DIR GGUF_DIR [INFER]
    llama_cpp.py speed MODEL_DIR WORK_DIR [--infer INFER] [--bench BENCH] [--rounds N] [--threads N] [--batch 1 8]

answers: GGUF_DIR is what `infer export --model MODEL_DIR --output GGUF_DIR` wrote; INFER is the program (target/release/infer).

speed: exports the model into WORK_DIR as f16 and q8_0, makes q4_0 of it with ggml's quantiser, and measures in turn, round by round,
llama.cpp with each file and BENCH (`cargo bench -p infer --bench generate --no-run` prints its path) with weights as stored and int8.
Prompts have 587 tokens without a picture, answers 64; a batch is so many prompts decoded together. Prints the median seconds to the first token and tokens a second,
the processor time of both (user, all threads: of use where other programs run, and with --threads 1), and medians of the rounds' ratios.
"""
import argparse
import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time
import urllib.request

PROMPT, TOKENS = 587, 64
PAIRS = [("f16", "stored", 1.1), ("q8_0", "int8", 1.3), ("q4_0", "nf4", 1.0)]
QUESTIONS = [
    "What is the capital of France?",
    "Write a short poem about 12 cats, 345 dogs and the year 2024.",
    "List three fruits.",
    "Explain gravity to a child in two sentences.",
    "Tell me a joke!",
    "def fib(n):  # it's C++11's `auto`?",
    "Warum ist der Himmel blau? Größe: 3,14€",
]


class LlamaCpp:
    """A server of llama.cpp in this process."""

    def __init__(self, path, context, parallel, threads=None):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = context * parallel, parallel, False, 0
        if threads:
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self.server = xllamacpp.Server(params)

    def complete(self, **body):
        data = json.dumps({"temperature": 0, **body}).encode()
        request = urllib.request.Request(self.server.listening_address + "/completion", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


def answers(model, gguf, infer):
    llama_cpp = LlamaCpp(f"{gguf}/model-f16.gguf", 1024, 1)
    count, same = 48, 0
    for question in QUESTIONS:
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        prompt = f"{system}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        theirs = llama_cpp.complete(prompt=prompt, n_predict=count)["content"]
        command = [infer, "generate", "--model", model, "--prompt", question, "--max-new-tokens", str(count), "--json"]
        ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["text"]
        same += ours == theirs
        print("same " if ours == theirs else "OTHER", repr(theirs), "" if ours == theirs else repr(ours))
    print(f"{same} of {len(QUESTIONS)} answers are the same")


def serve_turns(path, batch, threads):
    """In a process of its own: measures llama.cpp once for each line of stdin."""
    llama_cpp = LlamaCpp(path, 1024, batch, threads)
    prompt = list(range(1000, 1000 + PROMPT))

    def ask(slot, tokens, cached):
        llama_cpp.complete(prompt=prompt, n_predict=tokens, id_slot=slot, cache_prompt=cached, ignore_eos=True)

    def together(tokens, cached):
        begin, used = time.time(), os.times().user
        threads = [threading.Thread(target=ask, args=(slot, tokens, cached)) for slot in range(batch)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.time() - begin, os.times().user - used

    ask(0, 2, False)
    for _ in sys.stdin:
        first, first_cpu = together(1, False)
        # The prompts are in the cache: only answers are computed.
        rest, rest_cpu = together(TOKENS, True)
        report(first, first_cpu, rest, rest_cpu, batch)


def report(first, first_cpu, rest, rest_cpu, batch):
    tokens = TOKENS * batch
    print(json.dumps({"first_s": first, "first_cpu_s": first_cpu, "tokens_per_s": tokens / rest, "cpu_ms_per_token": 1e3 * rest_cpu / tokens}), flush=True)


def quantize_q4_0(source, path):
    """q4_0 as llama-quantize makes it: the output weights in more bits."""
    import gguf
    import numpy as np
    import xllamacpp

    library = ctypes.CDLL(str(next(pathlib.Path(xllamacpp.__file__).parent.glob("*.so"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    types, reader = gguf.GGMLQuantizationType, gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if field.name != "general.architecture" and not field.name.startswith("GGUF."):
            of = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, 2 if field.name == "general.file_type" else field.contents(), field.types[0], of)
    has_output = any(tensor.name == "output.weight" for tensor in reader.tensors)
    for tensor in reader.tensors:
        values = np.ascontiguousarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        if values.ndim != 2:
            writer.add_tensor(tensor.name, values)
            continue
        rows, width = values.shape
        is_head = tensor.name == ("output.weight" if has_output else "token_embd.weight")
        kind = (types.Q6_K if width % 256 == 0 else types.Q8_0) if is_head else types.Q4_0
        block, size = gguf.GGML_QUANT_SIZES[kind]
        output = np.zeros((rows, width // block * size), np.uint8)
        assert library.ggml_quantize_chunk(int(kind), values.ctypes.data, output.ctypes.data, 0, rows, width, None) == output.size
        writer.add_tensor(tensor.name, output, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def files(args):
    found = {}
    for kind in ["f16", "q8_0"]:
        folder = args.work / kind
        if not folder.exists():
            command = [args.infer, "export", "--model", args.model, "--output", folder, "--quantize", kind]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found[kind] = folder / f"model-{kind}.gguf"
    found["q4_0"] = args.work / "model-q4_0.gguf"
    if not found["q4_0"].exists():
        quantize_q4_0(found["f16"], found["q4_0"])
    return found


def speed(args):
    import xllamacpp

    # Wheels are built for one instruction set, whatever the machine has.
    print("llama.cpp:", xllamacpp.get_system_info())
    paths = files(args)
    environment = {**os.environ, "RAYON_NUM_THREADS": str(args.threads)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    weights_of_bench = subprocess.run([args.bench, "--help"], check=True, capture_output=True, text=True).stdout
    for batch in args.batch:
        for kind, weights, goal in PAIRS:
            if weights not in weights_of_bench:
                print(f"batch {batch}: {kind} has no counterpart: the bench has no weights {weights}")
                continue
            theirs = [sys.executable, __file__, "turns", paths[kind], str(batch), str(args.threads)]
            ours = [args.bench, "--model", args.model, "--weights", weights, "--batch", str(batch)]
            ours += ["--prompt-tokens", str(PROMPT), "--new-tokens", str(TOKENS), "--turns"]
            programs = [subprocess.Popen(command, stderr=subprocess.DEVNULL, **pipes) for command in (theirs, ours)]
            rounds = []
            for _ in range(args.rounds):
                turn = []
                for program in programs:
                    program.stdin.write("\n")
                    program.stdin.flush()
                    turn.append(json.loads(program.stdout.readline()))
                rounds.append(turn)
            for program in programs:
                program.stdin.close()
                program.wait()
            show(batch, kind, weights, goal, rounds)


def show(batch, kind, weights, goal, rounds):
    median = lambda of: statistics.median(map(of, rounds))
    for index, name in enumerate([f"llama.cpp {kind}", f"infer {weights}"]):
        values = {key: median(lambda turn: turn[index][key]) for key in rounds[0][index]}
        print(f"batch {batch}, {name}: " + ", ".join(f"{key} {value:.3f}" for key, value in values.items()))
    ratio = {
        "prefill": median(lambda turn: turn[0]["first_s"] / turn[1]["first_s"]),
        "prefill, processor time": median(lambda turn: turn[0]["first_cpu_s"] / turn[1]["first_cpu_s"]),
        "decoding": median(lambda turn: turn[1]["tokens_per_s"] / turn[0]["tokens_per_s"]),
        "decoding, processor time": median(lambda turn: turn[0]["cpu_ms_per_token"] / turn[1]["cpu_ms_per_token"]),
    }
    print(f"batch {batch}, infer {weights} ÷ llama.cpp {kind}: " + ", ".join(f"{key} {value:.2f}" for key, value in ratio.items()))
    print(f"batch {batch}: goals are prefill 2.00, decoding {goal:.2f}", flush=True)


def main():
    if sys.argv[1:2] == ["turns"]:
        return serve_turns(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of_answers = commands.add_parser("answers")
    of_answers.add_argument("model")
    of_answers.add_argument("gguf")
    of_answers.add_argument("infer", nargs="?", default="target/release/infer")
    of_speed = commands.add_parser("speed")
    of_speed.add_argument("model")
    of_speed.add_argument("work", type=pathlib.Path)
    of_speed.add_argument("--infer", default="target/release/infer")
    of_speed.add_argument("--bench", required=True)
    of_speed.add_argument("--rounds", type=int, default=5)
    of_speed.add_argument("--threads", type=int, default=2)
    of_speed.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    args = parser.parse_args()
    if args.command == "answers":
        return answers(args.model, args.gguf, args.infer)
    args.work.mkdir(parents=True, exist_ok=True)
    speed(args)


main()
