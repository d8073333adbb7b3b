"""row_losses.py MODEL SAMPLES.json PIXELS.safetensors: loss sum and tokens of each row alone, by transformers.

A sample has one image, or as many as its `images` says; PIXELS holds them one after the other.
"""
import json
import sys

import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

model_dir, samples, pixels = sys.argv[1:4]
model = LlavaForConditionalGeneration.from_pretrained(model_dir, dtype=torch.float32).eval()
config = model.config
features = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
pixels = load_file(pixels)["pixel_values"]
rows, first = [], 0
for sample in json.load(open(samples)):
    images = sample.get("images", 1)
    pixel_values = pixels[first:first + images] if images else None
    first += images

    def expand(values):
        repeats = [features if id == config.image_token_index else 1 for id in sample["input_ids"]]
        return torch.tensor([[v for v, n in zip(values, repeats) for _ in range(n)]])
    ids, labels = expand(sample["input_ids"]), expand(sample["labels"])
    with torch.no_grad():
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, pixel_values=pixel_values).loss
    tokens = int((labels[:, 1:] != -100).sum())
    rows.append(dict(id=sample["id"], loss_sum=loss.item() * tokens, tokens=tokens))
print(json.dumps(rows))
