#!/usr/bin/env python3
"""Rows a second of our loader and of torch's DataLoader doing the same job: picture and text into a batch at 336 px.

    python tests/bench/loader.py --model DIR --shards DIR --data DIR [--batch 4] [--rows 2000] [--peer-rows 400] [--workers 2]

Ours decodes rows of the shards (made once, by preprocess); the DataLoader decodes, resizes and tokenizes with transformers'
processor and tokenizer in persistent workers, as peers/peer_train.py does. CPU-seconds are of all threads and workers.
"""
import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def peer(a):
    sys.path.insert(0, str(ROOT / "tests/bench/peers"))
    import torch
    from peer_train import Rows, collate
    from torch.utils.data import DataLoader
    from transformers import LlavaConfig

    torch.set_num_threads(1)
    rows = Rows(a.data, a.model, LlavaConfig.from_pretrained(a.model))
    warm_up = 8 * a.batch
    order = [i % len(rows) for i in range(warm_up + a.peer_rows)]
    loader = iter(DataLoader(rows, a.batch, sampler=order, num_workers=a.workers, persistent_workers=True,
                             collate_fn=lambda r: collate(r, rows.tok.pad_token_id or 0)))
    for _ in range(warm_up // a.batch):
        next(loader)
    begin, read = time.perf_counter(), 0
    for batch in loader:
        read += len(batch["input_ids"])
    seconds = time.perf_counter() - begin
    del loader, batch
    print(json.dumps(dict(side="DataLoader", workers=a.workers, rows=read, rows_per_s=round(read / seconds))))


def resolved(path):
    """cargo runs a benchmark in its crate's folder."""
    return str(pathlib.Path(path).resolve())


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "shards", "data"):
        ap.add_argument("--" + name, required=True)
    for name, default in (("batch", 4), ("rows", 2000), ("peer-rows", 400), ("workers", 2)):
        ap.add_argument("--" + name, type=int, default=default)
    ap.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.peer:
        return peer(a)
    for workers in (1, a.workers):
        subprocess.run(["cargo", "bench", "--quiet", "-p", "train", "--bench", "loader", "--", "--model", resolved(a.model), "--shards", resolved(a.shards),
                        "--batch", str(a.batch), "--workers", str(workers), "--rows", str(a.rows)], check=True, cwd=ROOT)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--peer"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"DataLoader: {cpu:.1f} CPU-seconds in all, start and warm-up included")


if __name__ == "__main__":
    main()
