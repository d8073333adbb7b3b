#!/usr/bin/env python3
"""ZeRO-2 measured: memory of a rank against its formula, communication hidden behind computing, DeepSpeed side by side.

    python tests/bench/zero.py memory|overlap|peer|model WORK_DIR [--python PYTHON] [--deepspeed PYTHON]

WORK_DIR is kept: model (204 million values, random) and shards are made in it once. PYTHON has torch and transformers, and
mpiexec beside it (default: LLAVA_PYTHON); for `peer` a second one has deepspeed. Programs are those of the release build.
`peer` runs DeepSpeed in a network namespace of its own, to count what crosses the loopback, which needs root.
"""
import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SHARED, REFERENCE = (pathlib.Path(os.environ.get(name, f"{name}-is-not-set")) for name in ("LLAVA_SHARED", "LLAVA_REFERENCE"))
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
# Runs a rank and leaves its CPU-seconds and peak memory (bytes) in a file.
WRAP = """
import json, os, sys
pid = os.fork()
if pid == 0:
    os.execv(sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(pid, 0)
name = f"{sys.argv[1]}/{os.environ.get('PMI_RANK', '0')}.json"
json.dump(dict(cpu=usage.ru_utime + usage.ru_stime, rss=usage.ru_maxrss * 1024), open(name, "w"))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def make(work, python):
    work.mkdir(parents=True, exist_ok=True)
    reference, model, shards = REFERENCE / "tiny/llava", work / "model", work / "shards"
    if not model.exists():
        subprocess.run([python, HERE / "zero_model.py", reference, model], check=True)
    if not shards.exists():
        subprocess.run([TARGET / "preprocess", "shards", "--model", model, "--data", SHARED / "data/coco224_main",
                        "--output", shards, "--limit", "400"], check=True, stderr=subprocess.DEVNULL)


def ours(work, python, ranks, steps, micro_batch, accumulation=1, more=()):
    """A run of `ranks` MPI processes: lines of metrics, usage of every rank, stderr."""
    bin_dir = pathlib.Path(python).parent
    out, usage = work / "run", tempfile.mkdtemp()
    shutil.rmtree(out, ignore_errors=True)
    command = [TARGET / "train", "--model_name_or_path", work / "model", "--data_path", work / "shards", "--output_dir", out,
               "--train_type", "none", "--per_device_train_batch_size", micro_batch, "--gradient_accumulation_steps",
               accumulation, "--max_steps", steps, "--logging_steps", 1, "--shuffle", "false", "--learning_rate", 1e-4,
               "--lr_scheduler_type", "constant", "--loss_normalization", "micro_batch_mean", "--save_strategy", "no", *more]
    command = [bin_dir / "mpiexec", "-n", ranks, sys.executable, "-c", WRAP, usage, *command]
    env = dict(os.environ, PATH=f"{bin_dir}:{os.environ['PATH']}")
    result = subprocess.run([str(word) for word in command], env=env, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(result.stderr)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    per_rank = [json.load(open(f"{usage}/{rank}.json")) for rank in range(ranks)]
    return lines, per_rank, result.stderr


def trained_values(stderr):
    return int(next(line for line in stderr.splitlines() if line.startswith("training ")).split()[1])


def largest_block(work):
    """Values of a text layer: the largest bucket of this model."""
    text = json.loads((work / "model/config.json").read_text())["text_config"]
    hidden, ffn = text["hidden_size"], text["intermediate_size"]
    return 4 * hidden * hidden + 3 * hidden * ffn + 5 * hidden


def memory(work, python):
    print("| ranks | 4P + 12P/N + two blocks, MB | measured peak of a rank, MB | difference |\n|---|---|---|---|")
    for ranks in (1, 2, 4):
        _, usage, stderr = ours(work, python, ranks, 2, 1)
        values = trained_values(stderr)
        formula = 4 * values + 12 * values / ranks + 2 * 4 * largest_block(work)
        worst = max((rank["rss"] for rank in usage), key=lambda rss: abs(rss / formula - 1))
        peaks = ", ".join(f"{rank['rss'] / 1e6:.0f}" for rank in usage)
        print(f"| {ranks} | {formula / 1e6:.0f} | {peaks} | {100 * (worst / formula - 1):+.1f} % |", flush=True)


def overlap(work, python):
    print("| accumulation | step, s | exchanging, s | of it waited for, s | hidden |\n|---|---|---|---|---|")
    for accumulation in (1, 2):
        lines, _, _ = ours(work, python, 2, 6, 2, accumulation)
        median = lambda key: statistics.median(line[key] for line in lines[2:])
        busy, waited = (sum(line[key] for line in lines[2:]) for key in ("communication_seconds", "communication_wait_seconds"))
        print(f"| {accumulation} | {median('step_seconds'):.2f} | {median('communication_seconds'):.3f} | "
              f"{median('communication_wait_seconds'):.3f} | {100 * (1 - waited / busy):.0f} % |", flush=True)


def deepspeed(work, python, ranks, steps, micro_batch, bucket):
    out = tempfile.mkdtemp(dir=work)
    rank = f"{python} {HERE}/peers/peer_deepspeed.py --model {work}/model --data {SHARED}/data/coco224_main " \
           f"--steps {steps} --micro-batch {micro_batch} --bucket {bucket} --checkpoint {out}/checkpoint"
    script = "ip link set lo up; export MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 WORLD_SIZE=%d GLOO_SOCKET_IFNAME=lo;" % ranks
    script += "".join(f"RANK={r} LOCAL_RANK={r} {rank} & " for r in range(ranks)) + "wait"
    # DeepSpeed builds its shared-memory operation with ninja when it starts.
    env = dict(os.environ, PATH=f"{pathlib.Path(python).parent}:{os.environ['PATH']}")
    result = subprocess.run(["unshare", "-n", "bash", "-c", script], env=env, capture_output=True, text=True)
    shutil.rmtree(out, ignore_errors=True)
    # Two ranks may write into one line.
    found = [json.JSONDecoder().raw_decode(part)[0] for part in result.stdout.split("RESULT ")[1:]]
    (work / "deepspeed.json").write_text(json.dumps(found))
    if len(found) != ranks:
        sys.exit(result.stderr[-4000:])
    return sorted(found, key=lambda one: one["rank"])


def peer(work, python, with_deepspeed, bucket):
    steps, micro_batch, ranks = 6, 2, 2
    theirs = deepspeed(work, with_deepspeed, ranks, steps, micro_batch, bucket)
    short = ours(work, python, ranks, 2, micro_batch)[1]
    lines, usage, _ = ours(work, python, ranks, steps, micro_batch)
    _, saving_usage, stderr = ours(work, python, ranks, 4, micro_batch, 1, ["--save_strategy", "steps", "--save_steps", 2])
    saved = next(line for line in stderr.splitlines() if line.startswith("checkpoint-2 is saved"))
    checkpoint = work / "run/checkpoint-2"
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    worst = max(abs(line["loss"] / loss - 1) for line, loss in zip(lines, theirs[0]["losses"]))
    cpu = (sum(rank["cpu"] for rank in usage) - sum(rank["cpu"] for rank in short)) / (steps - 2)
    values = trained_values(stderr)
    print(f"{values} trained values, {ranks} ranks, {micro_batch} rows each; largest relative difference of a loss: {worst:.1e}")
    print("| | ours | DeepSpeed 0.19 | ratio |\n|---|---|---|---|")

    def row(name, a, b, unit, digits=2):
        print(f"| {name}, {unit} | {a:.{digits}f} | {b:.{digits}f} | {b / a:.2f} |")

    row("sent per rank and step", statistics.median(l["bytes_sent"] for l in lines[2:]) / 1e6,
        statistics.mean(t["bytes_per_rank"] for t in theirs) / 1e6, "MB", 0)
    row("peak RSS of a rank", max(r["rss"] for r in usage) / 1e6, max(t["peak_rss"] for t in theirs) / 1e6, "MB", 0)
    row("peak RSS of a rank that also saves", max(r["rss"] for r in saving_usage) / 1e6,
        max(t["peak_rss_with_save"] for t in theirs) / 1e6, "MB", 0)
    row("CPU-seconds of a step, all ranks", cpu, sum(t["cpu_seconds"] for t in theirs), "s")
    row("seconds of a step", statistics.median(l["step_seconds"] for l in lines[2:]),
        statistics.median(t["step_seconds"] for t in theirs), "s")
    words = saved.split()
    row("checkpoint: training stands still", max(float(words[words.index("for") + 1]), 0.01), theirs[0]["save_seconds"], "s")
    row("checkpoint: until it is there", float(words[words.index("of") + 1]), theirs[0]["save_seconds"], "s")
    row("checkpoint: size", size / 1e6, theirs[0]["checkpoint_bytes"] / 1e6, "MB", 0)
    for step, (line, loss) in enumerate(zip(lines, theirs[0]["losses"]), 1):
        print(f"step {step}: {line['loss']:.6f} {loss:.6f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "overlap", "peer", "model"])
    parser.add_argument("work", type=lambda path: pathlib.Path(path).resolve())
    parser.add_argument("--python", default=os.environ.get("LLAVA_PYTHON", "python3"))
    parser.add_argument("--deepspeed", default="python3")
    parser.add_argument("--bucket", default="5e8", help="DeepSpeed's bucket sizes, values; 5e8 is its default")
    args = parser.parse_args()
    make(args.work, args.python)
    if args.what == "memory":
        memory(args.work, args.python)
    elif args.what == "overlap":
        overlap(args.work, args.python)
    elif args.what == "peer":
        peer(args.work, args.python, args.deepspeed, args.bucket)


main()
