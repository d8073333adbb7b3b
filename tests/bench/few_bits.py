#!/usr/bin/env python3
"""LoRA on a base in few bits beside the f32 base: the loss before training and after some steps, on the small real pair.

    python tests/bench/few_bits.py prepare --work DIR              the model after its projector was trained, and shards with held-out rows
    python tests/bench/few_bits.py start --work DIR [NAME …]       loss of the held-out rows before training, by setting
    python tests/bench/few_bits.py train --work DIR [NAME …]       loss of `--steps` steps, by setting
    python tests/bench/few_bits.py peer --work DIR                 the same steps in transformers + PEFT on bitsandbytes' values
    python tests/bench/few_bits.py table --work DIR

Needs the programs (cargo build --release, or FEW_BITS_BIN: their folder), LLAVA_SHARED (data/coco224_main) and LLAVA_BACKBONES; `peer` needs the packages of
tests/requirements.txt and bitsandbytes. Results are appended to DIR/results.jsonl.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("FEW_BITS_BIN", pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"))
NF4 = ["--load_in_4bit", "true"]
ALL = ["--lora_target_modules", "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"]
SKIP = "--llm_int8_skip_modules"
# Steps until the learning rate is reached.
WARMUP = 4
ENDS = r"model.language_model.layers.(0|1|28|29)"
# Options of train by the name of a setting.
SETTINGS = {
    "f32": [],
    "int8": ["--load_in_8bit", "true"],
    "nf4": NF4,
    "nf4, magnitudes in f32": [*NF4, "--bnb_4bit_use_double_quant", "false"],
    "nf4 without down_proj": [*NF4, SKIP, "down_proj"],
    "nf4 without v_proj, o_proj": [*NF4, SKIP, "v_proj,o_proj"],
    "nf4 without mlp": [*NF4, SKIP, "gate_proj,up_proj,down_proj"],
    "nf4 without layers 0, 1, 28, 29": [*NF4, SKIP, ENDS],
    "nf4 without down_proj and layers 0, 1, 28, 29": [*NF4, SKIP, f"down_proj,{ENDS}"],
    "f32, LoRA on all of the layers": ALL,
    "nf4, LoRA on all of the layers": [*NF4, *ALL],
}


def run(*command):
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")


def prepare(a):
    backbones, data = pathlib.Path(os.environ["LLAVA_BACKBONES"]), pathlib.Path(os.environ["LLAVA_SHARED"]) / "data/coco224_main"
    a.work.mkdir(parents=True, exist_ok=True)
    if not (a.work / "llava/config.json").exists():
        run(TARGET / "preprocess", "model", "--vision-tower", backbones / "dinov2s_as_clip336", "--language-model",
            backbones / "smollm2_as_qwen2", "--output", a.work / "llava", "--dtype", "f32")
    if not (a.work / "shards/index.json").exists():
        run(TARGET / "preprocess", "shards", "--model", a.work / "llava", "--data", data, "--output", a.work / "shards",
            "--validation-fraction", "0.3")
    if not (a.work / "1-projector/config.json").exists():
        run(TARGET / "train", "--model_name_or_path", a.work / "llava", "--data_path", a.work / "shards", "--output_dir",
            a.work / "1-projector", "--train_type", "projector", "--max_steps", "24", "--per_device_train_batch_size", "4",
            "--learning_rate", "1e-3", "--lr_scheduler_type", "cosine", "--warmup_steps", "4", "--save_strategy", "no",
            "--cache_vision_features", "f16")


def train(a, name, steps, rate, more):
    """The lines of metrics.jsonl."""
    output, model = a.work / "run", a.work / "1-projector"
    shutil.rmtree(output, ignore_errors=True)
    options = SETTINGS[name]
    run(TARGET / "train", "--model_name_or_path", model, "--data_path", a.work / "shards", "--output_dir", output, "--train_type",
        "use_lora", "--max_steps", steps, "--per_device_train_batch_size", a.batch, "--learning_rate", rate, "--lr_scheduler_type",
        "cosine", "--warmup_steps", WARMUP, "--logging_steps", "1", "--save_strategy", "no", "--lora_dropout", "0", "--eval_captions",
        "0", "--cache_vision_features", "f16", *options, *more)
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def note(a, **line):
    print(json.dumps(line), flush=True)
    with (a.work / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def start(a):
    for name in a.names or SETTINGS:
        lines = train(a, name, 1, "0", ["--eval_strategy", "steps", "--eval_steps", "1"])
        evaluation = next(line for line in lines if "eval_loss" in line)
        note(a, kind="start", name=name, loss=evaluation["eval_loss"], tokens=evaluation["eval_supervised_tokens"])


def steps(a):
    for name in a.names:
        lines = train(a, name, a.steps, a.rate, ["--eval_strategy", "steps", "--eval_steps", str(a.steps)])
        losses = [line["loss"] for line in lines if "loss" in line]
        last = losses[-50:]
        evaluation = next(line for line in lines if "eval_loss" in line)
        note(a, kind="train", name=name, steps=a.steps, batch=a.batch, loss=sum(last) / len(last), eval_loss=evaluation["eval_loss"],
             losses=losses)


def table(a):
    lines = [json.loads(line) for line in (a.work / "results.jsonl").read_text().splitlines()]
    for kind in ("start", "train"):
        of_kind = {line["name"]: line for line in lines if line["kind"] == kind}
        base = of_kind["f32"]
        print(f"\n{kind}\n| base | loss | beside f32 |\n|---|---|---|")
        for name in [name for name in SETTINGS if name in of_kind]:
            loss = of_kind[name]["loss"]
            more = f" | {of_kind[name]['eval_loss']:.4f}" if kind == "train" else ""
            print(f"| {name} | {loss:.4f} | {100 * (loss / base['loss'] - 1):+.2f} %{more} |")


def read_codes(a, folder, model):
    """Puts the values that bitsandbytes reads from `infer quantize`'s files in the language model's layers; prints how many codes it writes
    otherwise, by its library for CPUs."""
    import torch
    from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
    from safetensors.torch import load_file
    output = a.work / "nf4"
    if not output.exists():
        run(TARGET / "infer", "quantize", "--model", folder, "--output", output)
    tensors = {name: tensor for file in output.glob("*.safetensors") for name, tensor in load_file(file).items()}
    modules = {re.sub(r"^model\.language_model\.", "language_model.model.", path): module for path, module in model.named_modules()}
    codes = magnitudes = written = 0
    for name in [name for name in tensors if f"{name}.absmax" in tensors]:
        weight = modules[name.removesuffix(".weight")].weight
        state = QuantState.from_dict({key: value for key, value in tensors.items() if key.startswith(f"{name}.")}, torch.device("cpu"))
        again, again_state = quantize_4bit(weight.data, blocksize=64, compress_statistics=True, quant_type="nf4")
        codes += int((again.flatten() != tensors[name].flatten()).sum())
        magnitudes += int((again_state.absmax.flatten() != state.absmax.flatten()).sum())
        written += state.absmax.numel()
        weight.data = dequantize_4bit(tensors[name], state).float().reshape(weight.shape)
    note(a, kind="codes", codes_that_differ=codes, magnitudes_that_differ=magnitudes, magnitudes=written)


def peer(a):
    """The first steps of PEFT in f32 on the values that bitsandbytes reads, and of this program on the codes, from one adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlavaForConditionalGeneration, get_constant_schedule_with_warmup
    sys.path.insert(0, str(ROOT / "tests/bench/peers"))
    from peer_train import Rows, collate
    torch.manual_seed(0)
    torch.set_num_threads(2)
    folder = a.work / "1-projector"
    for name in ("f32", "nf4"):
        model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        if name == "nf4":
            read_codes(a, folder, model)
        config = LoraConfig(r=32, lora_alpha=8, lora_dropout=0.0, task_type="CAUSAL_LM", modules_to_save=["multi_modal_projector"],
                            target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)")
        torch.manual_seed(0)
        model = get_peft_model(model, config).train()
        model.save_pretrained(a.work / "peer-init")
        rows = Rows(pathlib.Path(os.environ["LLAVA_SHARED"]) / "data/coco224_main", folder, model.config)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=float(a.rate), weight_decay=0.0)
        schedule = get_constant_schedule_with_warmup(optimizer, WARMUP)
        losses = []
        for step in range(a.steps):
            batch = collate([rows[step * a.batch + row] for row in range(a.batch)], rows.tok.pad_token_id or 0)
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        note(a, kind="peer", name=name, steps=a.steps, batch=a.batch, loss=sum(losses) / len(losses), losses=losses)
        output, shards = a.work / "run", a.work / "shards-in-order"
        if not (shards / "index.json").exists():
            run(TARGET / "preprocess", "shards", "--model", a.work / "llava", "--data",
                pathlib.Path(os.environ["LLAVA_SHARED"]) / "data/coco224_main", "--output", shards)
        shutil.rmtree(output, ignore_errors=True)
        run(TARGET / "train", "--model_name_or_path", folder, "--data_path", shards, "--output_dir", output, "--train_type", "use_lora",
            "--init_adapter", a.work / "peer-init", "--lora_dropout", "0", "--max_steps", a.steps, "--per_device_train_batch_size", a.batch,
            "--learning_rate", a.rate, "--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", WARMUP, "--shuffle", "false",
            "--logging_steps", "1", "--save_strategy", "no",
            "--force", "true", *SETTINGS[name])
        own = [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]
        largest = max(abs(x - y) / y for x, y in zip(own, losses))
        note(a, kind="own", name=name, steps=a.steps, batch=a.batch, loss=sum(own) / len(own), losses=own, largest_difference=largest)


parser = argparse.ArgumentParser()
parser.add_argument("command", choices=["prepare", "start", "train", "peer", "table"])
parser.add_argument("names", nargs="*")
parser.add_argument("--work", type=pathlib.Path, required=True)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--batch", type=int, default=2)
parser.add_argument("--rate", default="2e-3")
arguments = parser.parse_intermixed_args()
{"prepare": prepare, "start": start, "train": steps, "peer": peer, "table": table}[arguments.command](arguments)
