#!/usr/bin/env python3
"""One rank of the same job in DeepSpeed ZeRO-2 on the CPU (gloo): the side to beat. Started by zero.py, once per rank.

Environment: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT. Rows in file order, f32, torch's AdamW, the mean of each
micro-batch's mean loss. Prints one JSON line: losses, seconds and CPU-seconds of the steps after the first two, peak RSS,
seconds and bytes of a checkpoint.
"""
import argparse
import json
import os
import pathlib
import resource
import statistics
import sys
import time

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
import torch

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--steps", type=int, default=12)
parser.add_argument("--micro-batch", type=int, default=4)
parser.add_argument("--accumulation", type=int, default=1)
parser.add_argument("--lr", type=float, default=1e-4)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--bucket", type=float, default=5e8, help="reduce_bucket_size and allgather_bucket_size, values")
parser.add_argument("--checkpoint", required=True)
args = parser.parse_args()

from peer_train import Rows, collate
from transformers import LlavaForConditionalGeneration

torch.set_num_threads(args.threads)
rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
deepspeed.init_distributed("gloo")
model = LlavaForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32)
tower = model.model.vision_tower
layers = getattr(tower, "vision_model", tower).encoder.layers
selected = model.config.vision_feature_layer
unused = {id(p) for layer in layers[len(layers) + 1 + selected:] for p in layer.parameters()}
unused |= {id(p) for n, p in model.named_parameters() if "post_layernorm" in n and "vision" in n}
for parameter in model.parameters():
    parameter.requires_grad = id(parameter) not in unused
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=0.0)
engine, _, _, _ = deepspeed.initialize(model=model, model_parameters=trained, optimizer=optimizer, config={
    "train_micro_batch_size_per_gpu": args.micro_batch, "gradient_accumulation_steps": args.accumulation,
    "gradient_clipping": 1.0, "zero_allow_untested_optimizer": True, "steps_per_print": 10**9,
    "zero_optimization": {"stage": 2, "overlap_comm": True, "contiguous_gradients": True,
                          "reduce_bucket_size": int(args.bucket), "allgather_bucket_size": int(args.bucket)}})
rows = Rows(args.data, args.model, model.config)
used = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
sent = lambda: int(open("/proc/net/dev").read().split("lo:")[1].split()[8])
losses, seconds, cpu, traffic = [], [], [], []
for step in range(args.steps):
    began, began_cpu, began_sent, total = time.time(), used(), sent(), 0.0
    for micro in range(args.accumulation):
        first = ((step * args.accumulation + micro) * ranks + rank) * args.micro_batch
        batch = collate([rows[first + i] for i in range(args.micro_batch)], 0)
        loss = engine(**batch).loss
        engine.backward(loss)
        engine.step()
        total += loss.item()
    mean = torch.tensor(total / args.accumulation)
    torch.distributed.all_reduce(mean)
    losses.append(mean.item() / ranks)
    seconds.append(time.time() - began)
    cpu.append(used() - began_cpu)
    torch.distributed.barrier()
    traffic.append((sent() - began_sent) / ranks)
peak_of_training = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
torch.distributed.barrier()
began = time.time()
engine.save_checkpoint(args.checkpoint)
torch.distributed.barrier()
saving = time.time() - began
size = sum(f.stat().st_size for f in pathlib.Path(args.checkpoint).rglob("*") if f.is_file())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print("RESULT " + json.dumps(dict(rank=rank, losses=losses, step_seconds=statistics.median(seconds[2:]),
      cpu_seconds=statistics.mean(cpu[2:]), bytes_per_rank=statistics.median(traffic[2:]), peak_rss=peak_of_training,
      peak_rss_with_save=peak, save_seconds=saving, checkpoint_bytes=size)), flush=True)
