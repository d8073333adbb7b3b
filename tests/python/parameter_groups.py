"""parameter_groups.py REFERENCE OUT MODE RATES ROWS: eight steps of torch's AdamW with LLaVA's parameter groups.

REFERENCE is a model of tests/reference/make; MODE is none or use_lora; RATES is JSON with mm_projector_lr and vision_tower_lr;
ROWS is the number of rows of a step, of which an epoch's last one may have fewer.
OUT gets the final weights (an adapter for use_lora) and log.json: loss, grad_norm and the rate of every group at each step.
"""
import json
import pathlib
import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration, get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "reference"))
from make_reference import IGNORE_INDEX, save_checkpoint  # noqa: E402

reference, out, mode, rates = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
spec = json.loads((reference / "spec.json").read_text())
job = spec["train"]
model = LlavaForConditionalGeneration.from_pretrained(reference / "llava", dtype=torch.float32)
image_id, pad_id = model.config.image_token_index, model.config.pad_token_id
features = model.config.image_seq_length
if mode == "use_lora":
    model = PeftModel.from_pretrained(model, reference / "train_use_lora_init", is_trainable=True)
model.train()

# As LLaVA's trainer makes them: by name, each once with and once without weight decay.
decayed = [name for name in get_parameter_names(model, [torch.nn.LayerNorm], [r"bias", r"layernorm", r"rmsnorm",
           r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]) if name in dict(model.named_parameters())]
parts = [("learning_rate", job["lr"])] + [(part, rate) for part, rate in rates.items()]
words = {"mm_projector_lr": "multi_modal_projector", "vision_tower_lr": "vision_tower"}


def part_of(name):
    return next((part for part, _ in parts[1:] if words[part] in name), "learning_rate")


groups, titles = [], []
for part, rate in parts:
    for decays in (True, False):
        params = [p for n, p in model.named_parameters()
                  if p.requires_grad and part_of(n) == part and (n in decayed) == decays]
        groups.append(dict(params=params, lr=rate, weight_decay=job["weight_decay"] if decays else 0.0))
        titles.append(part)
optimizer = torch.optim.AdamW(groups, lr=job["lr"], betas=(0.9, 0.999), eps=1e-8)
scheduler = get_scheduler(job["schedule"], optimizer, job["warmup_steps"], job["steps"])

samples = json.loads((reference / "samples.json").read_text())
pixels = load_file(reference / "pixels.safetensors")["pixel_values"]


def expand(values, ids):
    return [v for v, t in zip(values, ids) for _ in range(features if t == image_id else 1)]


rows = [dict(ids=expand(s["input_ids"], s["input_ids"]), labels=expand(s["labels"], s["input_ids"])) for s in samples]
per_step = int(sys.argv[5])
batches = [range(start, min(start + per_step, len(rows))) for start in range(0, len(rows), per_step)]
log = []
for step in range(job["steps"]):
    chosen = list(batches[step % len(batches)])
    width = max(len(rows[i]["ids"]) for i in chosen)
    pad = lambda xs, v: [v] * (width - len(xs)) + xs
    # The mean over the supervised tokens of the whole step.
    loss = model(input_ids=torch.tensor([pad(rows[i]["ids"], pad_id) for i in chosen]),
                 labels=torch.tensor([pad(rows[i]["labels"], IGNORE_INDEX) for i in chosen]),
                 attention_mask=torch.tensor([pad([1] * len(rows[i]["ids"]), 0) for i in chosen]),
                 pixel_values=pixels[chosen]).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    log.append({"loss": loss.item(), "grad_norm": norm.item(),
                **{title: group["lr"] for title, group in zip(titles, optimizer.param_groups)}})
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
out.mkdir(parents=True, exist_ok=True)
if mode == "use_lora":
    model.save_pretrained(out)
else:
    save_checkpoint(model, out)
(out / "log.json").write_text(json.dumps(log))
