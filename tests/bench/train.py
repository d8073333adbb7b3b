#!/usr/bin/env python3
"""Training beside transformers + PyTorch: same model, same rows, same threads, alternating.

    python tests/bench/train.py run --work DIR [--models mini real] [--types use_lora none freeze_vision projector]
                                    [--batches 2 4] [--steps 5] [--warmup 2] [--repeats 1] [--threads 2] [--gemm PROGRAM]
    python tests/bench/train.py table --work DIR [--peak GFLOPS]

With `--gemm`, the matrix product's rate is measured before and after each of our runs (PROGRAM is target/release/gemm-bench of
`cargo build --release --manifest-path tests/bench/gemm/Cargo.toml`): the speed of a shared machine changes from minute to minute.

Needs the packages of tests/requirements.txt, the programs (cargo build --release), LLAVA_SHARED (a folder with data/coco224_main
and tokenizer/qwen1.5-image) and, for `real`, LLAVA_BACKBONES. Models
and shards are made once in DIR; every run appends a line to DIR/results.jsonl, and `table` prints the medians. Seconds are
those of an optimizer step after the warm-up; CPU-seconds include our loader threads (PyTorch's loader processes are not
counted); peak RSS is that of the training process from its start to its last step.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED, PEERS = pathlib.Path(os.environ.get("LLAVA_SHARED", "LLAVA_SHARED-is-not-set")), ROOT / "tests/bench/peers"
DATA = SHARED / "data/coco224_main"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
TYPES = ("use_lora", "none", "freeze_vision", "projector")
TICK = os.sysconf("SC_CLK_TCK")


def prepare(model, work):
    """The model's folder and its shards, made if they are not there."""
    folder = work / model
    llava = folder / "llava"
    if not (llava / "config.json").exists():
        make = [sys.executable, str(PEERS / "make_model.py")]
        if model == "mini":
            subprocess.run([*make, "random", "mini", str(SHARED / "tokenizer/qwen1.5-image"), str(folder)], check=True)
        else:
            backbones = pathlib.Path(os.environ["LLAVA_BACKBONES"])
            llava.mkdir(parents=True, exist_ok=True)
            subprocess.run([*make, "assemble", str(backbones / "dinov2s_as_clip336"), str(backbones / "smollm2_as_qwen2"),
                            str(llava)], check=True)
    if not (folder / "shards/index.json").exists():
        subprocess.run([str(TARGET / "preprocess"), "shards", "--model", str(llava), "--data", str(DATA), "--output",
                        str(folder / "shards"), "--limit", "128"], check=True)
    return llava, folder / "shards"


def run_ours(llava, shards, train_type, batch, a, more=()):
    """One line like the peer's."""
    output = a.work / "run"
    metrics = output / "metrics.jsonl"
    subprocess.run(["rm", "-rf", str(output)], check=True)
    last = a.warmup + a.steps
    command = [str(TARGET / "train"), "--model-name-or-path", str(llava), "--data-path", str(shards), "--output-dir", str(output),
               "--train-type", train_type, "--per-device-train-batch-size", str(batch), "--max-steps", str(last),
               "--logging-steps", "1", "--learning-rate", "4e-4", "--lr-scheduler-type", "constant", "--shuffle", "false",
               "--save-strategy", "no", "--dataloader-num-workers", "2", *more]
    process = subprocess.Popen(command, env=dict(os.environ, RAYON_NUM_THREADS=str(a.threads)), stderr=subprocess.PIPE, text=True,
                               stdout=subprocess.DEVNULL)
    ticks, lines = [], []  # progress lines, of which quick steps share one
    for line in process.stderr:
        lines.append(line)
        if line.startswith("step "):
            fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks.append((int(line.split()[1].split("/")[0]), (int(fields[11]) + int(fields[12])) / TICK))
    if process.wait() != 0:
        sys.exit("".join(lines))
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    measured = steps[a.warmup:]
    step = statistics.median(s["step_seconds"] for s in measured)
    (first, before), (end, after) = max(tick for tick in ticks if tick[0] <= a.warmup or tick is ticks[0]), ticks[-1]
    cpu = (after - before) / max(end - first, 1)
    return dict(side="ours", train_type=train_type, step_s=step, step_cpu_s=cpu, samples_per_s=batch / step,
                tokens=statistics.mean(s["tokens_per_second"] * s["step_seconds"] for s in measured),
                supervised=statistics.mean(s["supervised_tokens"] for s in measured),
                data_wait=sum(s["data_wait_seconds"] for s in measured) / sum(s["step_seconds"] for s in measured),
                peak_rss_mb=steps[-1]["peak_rss_mb"], loss_first=steps[0]["loss"], loss_last=steps[-1]["loss"])


def run_peer(llava, train_type, batch, a):
    command = [sys.executable, str(PEERS / "peer_train.py"), "--model", str(llava), "--data", str(DATA), "--train_type",
               train_type, "--micro_batch", str(batch), "--steps", str(a.steps), "--warmup", str(a.warmup), "--threads",
               str(a.threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def gemm_rate(a):
    """GFLOP/s of the fastest library's square product at this moment, 0 if it is not to be measured."""
    if a.gemm is None:
        return 0
    threads = {name: str(a.threads) for name in ("RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS")}
    done = subprocess.run([str(a.gemm), str(a.threads)], check=True, stdout=subprocess.PIPE, text=True, env=dict(os.environ, **threads))
    return float(done.stdout)


def run(a):
    a.work.mkdir(parents=True, exist_ok=True)
    for model in a.models:
        llava, shards = prepare(model, a.work)
        for train_type in a.types:
            for batch in a.batches:
                for _ in range(a.repeats):
                    for side in a.sides:
                        begin = time.time()
                        if side == "ours":
                            rates = [gemm_rate(a)]
                            line = run_ours(llava, shards, train_type, batch, a)
                            line["gemm_gflops"] = statistics.mean([*rates, gemm_rate(a)])
                        else:
                            line = run_peer(llava, train_type, batch, a)
                        line |= dict(model=model, batch=batch, threads=a.threads)
                        with open(a.work / "results.jsonl", "a") as file:
                            file.write(json.dumps(line) + "\n")
                        print(f"{model} {train_type} batch {batch} {side}: {line['step_s']:.3f} s, {line['step_cpu_s']:.2f} CPU-s, "
                              f"{line['peak_rss_mb']:.0f} MB, loss {line['loss_first']:.4f} → {line['loss_last']:.4f} "
                              f"({time.time() - begin:.0f} s)", flush=True)


def needed_flops(llava, train_type, batch, tokens, supervised):
    """Floating-point operations of the matrix products that a step cannot do without: two for each multiply-add.

    Forward: vision layers up to the selected one, language layers, logits of supervised positions; of the last language layer,
    queries, output and MLP of supervised positions only. Backward: the same once more for every input that needs a gradient and
    once for every trained weight; causal attention counts half of its square.
    """
    config = json.loads((llava / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    width, inner, layers = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]
    heads, kv_heads = text["num_attention_heads"], text.get("num_key_value_heads") or text["num_attention_heads"]
    kv = width // heads * kv_heads
    v_width, v_inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    v_layers = vision["num_hidden_layers"] + 1 + config.get("vision_feature_layer", -2)
    patches = (vision["image_size"] // patch) ** 2
    images, v_tokens = batch * patches, batch * (patches + 1)
    vocabulary = text["vocab_size"]
    per_row = tokens / batch

    lm = 2 * (tokens * (layers * 2 * width * kv + (layers - 1) * (2 * width * width + 3 * width * inner))
              + supervised * (2 * width * width + 3 * width * inner))
    lm_attention = 2 * 2 * tokens * per_row / 2 * width * (layers - 1) + 2 * 2 * supervised * per_row * width
    head = 2 * supervised * width * vocabulary
    projector = 2 * images * (v_width * width + width * width)
    tower = 2 * (v_layers * v_tokens * (4 * v_width * v_width + 2 * v_width * v_inner)
                 + images * 3 * patch * patch * v_width)
    tower_attention = 2 * 2 * v_tokens * (patches + 1) * v_width * v_layers
    rank = 32
    lora = 2 * rank * layers * tokens * ((width + width) * 2 + (width + kv) * 2) if train_type == "use_lora" else 0
    # Attention's backward: the gradients of queries, keys, values and scores are twice the forward's products.
    forward = lm + lm_attention + head + projector + tower + tower_attention + lora
    through = lm + 2 * lm_attention + head + projector + lora  # gradients of inputs
    weights = projector + lora
    if train_type in ("none", "freeze_vision"):
        weights += lm + head
    if train_type == "none":
        through += tower + 2 * tower_attention
        weights += tower
    return forward + through + weights


def table(a):
    results = [json.loads(line) for line in (a.work / "results.jsonl").read_text().splitlines()]
    print("| model | train_type | batch | ours: s/step | PyTorch: s/step | samples/s, ours ÷ PyTorch | CPU-s, PyTorch ÷ ours "
          "| ours: MB | PyTorch: MB | RSS, ours ÷ PyTorch | needed GFLOP | GFLOP/s | of the peak |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for model in a.models:
        for train_type in a.types:
            for batch in a.batches:
                same = [r for r in results if (r["model"], r["train_type"], r["batch"], r["threads"]) == (model, train_type, batch, a.threads)]
                ours, peer = ([r for r in same if r["side"] == side] for side in ("ours", "pytorch"))
                if not ours or not peer:
                    continue
                median = lambda rows, key: statistics.median(r[key] for r in rows)
                (s, ps), (c, pc) = ((median(ours, k), median(peer, k)) for k in ("step_s", "step_cpu_s"))
                m, pm = median(ours, "peak_rss_mb"), median(peer, "peak_rss_mb")
                flops = needed_flops(a.work / model / "llava", train_type, batch, median(ours, "tokens"), median(ours, "supervised"))
                peak = a.peak or statistics.median(r.get("gemm_gflops", 0) for r in ours)
                share = f"{flops / s / 1e9 / peak:.0%} of {peak:.0f}" if peak else ""
                print(f"| {model} | {train_type} | {batch} | {s:.3f} | {ps:.3f} | {ps / s:.1f} | {pc / c:.1f} | {m:.0f} | {pm:.0f} "
                      f"| {m / pm:.2f} | {flops / 1e9:.0f} | {flops / s / 1e9:.0f} | {share} |")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("command", choices=("run", "table"))
    ap.add_argument("--work", type=pathlib.Path, required=True)
    ap.add_argument("--models", nargs="+", default=["mini", "real"], choices=("mini", "real"))
    ap.add_argument("--types", nargs="+", default=list(TYPES), choices=TYPES)
    ap.add_argument("--batches", nargs="+", type=int, default=[2, 4])
    ap.add_argument("--sides", nargs="+", default=["ours", "pytorch"])
    ap.add_argument("--peak", type=float, default=0, help="measured f32 GEMM peak, GFLOP/s")
    ap.add_argument("--gemm", type=pathlib.Path, help="gemm-bench, to measure the peak beside every run")
    for name, default in (("steps", 5), ("warmup", 2), ("repeats", 1), ("threads", 2)):
        ap.add_argument("--" + name, type=int, default=default)
    a = ap.parse_args()
    {"run": run, "table": table}[a.command](a)


if __name__ == "__main__":
    main()
