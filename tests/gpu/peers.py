#!/usr/bin/env python3
"""torch, transformers and PEFT at the work of tests/gpu/run, on the same GPU: a line of JSON for each result.

    python peers.py kernels | lora MODEL | full MODEL | decode MODEL
"""
import json
import sys
import time

import torch

ROWS, TOKENS, SUPERVISED, WARMUP, STEPS = 8, 620, 16, 2, 5


def timed(work, repeats=10):
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats * 1e3


def error(found, expected):
    return ((found.float() - expected).abs().max() / expected.abs().max()).item()


def kernels():
    """The names are those of gpu_kernels."""
    import torch.nn.functional as F

    tokens, width, inner, heads = ROWS * TOKENS, 2560, 6912, 20
    torch.manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, device="cuda").bfloat16()

    def attention(q, k, v, causal, heads):
        split = [x.view(ROWS, -1, heads, x.shape[-1] // heads).transpose(1, 2) for x in (q, k, v)]
        return F.scaled_dot_product_attention(*split, is_causal=causal).transpose(1, 2).reshape(q.shape)

    x, gate, up = normal(tokens, width), normal(tokens, inner), normal(tokens, inner)
    q, k, v = (normal(tokens, width) for _ in range(3))
    patches = [normal(ROWS * 577, 1024) for _ in range(3)]
    norm, weight, mlp = normal(width), normal(width, width) * 0.02, normal(inner, width) * 0.02
    cases = {
        "linear 2560 → 2560": (lambda x, w: F.linear(x, w), [x, weight]),
        "linear 2560 → 6912": (lambda x, w: F.linear(x, w), [x, mlp]),
        "rms_norm": (lambda x, w: F.rms_norm(x, (width,), w, 1e-6), [x, norm]),
        "layer_norm": (lambda x, w: F.layer_norm(x, (1024,), w, w), [patches[0], normal(1024)]),
        "swiglu": (lambda g, u: F.silu(g) * u, [gate, up]),
        "quick_gelu": (lambda x: x * torch.sigmoid(1.702 * x), [normal(ROWS * 577, 4096)]),
        "attention, causal": (lambda q, k, v: attention(q, k, v, True, heads), [q, k, v]),
        "attention, vision": (lambda q, k, v: attention(q, k, v, False, 16), patches),
    }
    for name, (work, inputs) in cases.items():
        with torch.no_grad():
            found, expected = work(*inputs), work(*(value.float() for value in inputs))
        leaves = [value.detach().requires_grad_() for value in inputs]

        def both():
            work(*leaves).sum().backward()

        row = {"name": name, "error": error(found, expected), "forward_ms": timed(lambda: work(*inputs)), "both_ms": timed(both)}
        print(json.dumps(row), flush=True)


def load(path, **options):
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(path, torch_dtype=torch.bfloat16, attn_implementation="sdpa", **options).cuda()


def batch(model, rows):
    config = model.config
    image = getattr(config, "image_token_id", None) or config.image_token_index
    ids = torch.randint(0, 255, (rows, TOKENS), device="cuda")
    ids[:, 20:20 + 576] = image
    labels = torch.full_like(ids, -100)
    labels[:, -SUPERVISED:] = ids[:, -SUPERVISED:]
    pixels = torch.randn(rows, 3, 336, 336, device="cuda", dtype=torch.bfloat16)
    return {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids), "labels": labels}


def train(path, full):
    model = load(path)
    if full:
        model.requires_grad_(True)
    else:
        from peft import LoraConfig, get_peft_model

        targets = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)"
        projector = ["multi_modal_projector"]
        model = get_peft_model(model, LoraConfig(r=32, lora_alpha=8, lora_dropout=0.05, target_modules=targets, modules_to_save=projector))
    model.train()
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-5, fused=True)
    seconds = []
    for _ in range(WARMUP + STEPS):
        given = batch(model, ROWS)
        torch.cuda.synchronize()
        start = time.perf_counter()
        model(**given).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    step = sorted(seconds[WARMUP:])[STEPS // 2]
    print(json.dumps({"rows_per_second": ROWS / step, "step_seconds": step, "peak_gb": torch.cuda.max_memory_allocated() / 1e9}))


def decode(path):
    model = load(path).eval()
    given = {key: value for key, value in batch(model, 1).items() if key != "labels"}
    seconds = {}
    for count in (8, 8, 136):
        torch.cuda.synchronize()
        start = time.perf_counter()
        model.generate(**given, min_new_tokens=count, max_new_tokens=count, do_sample=False)
        torch.cuda.synchronize()
        seconds[count] = time.perf_counter() - start
    print(json.dumps({"tokens_per_second": 128 / (seconds[136] - seconds[8])}))


{"kernels": lambda: kernels(), "lora": lambda: train(sys.argv[2], False), "full": lambda: train(sys.argv[2], True),
 "decode": lambda: decode(sys.argv[2])}[sys.argv[1]]()
