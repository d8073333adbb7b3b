#!/usr/bin/env python3
"""A LLaVA with random weights for measurements of ZeRO: the tiny reference model's tokenizer and processor, layers of a chosen size.

    python zero_model.py REFERENCE_DIR OUT_DIR [--hidden 1024] [--ffn 2816] [--layers 14] [--vision-hidden 512] [--vision-layers 6]
"""
import argparse
import json
import pathlib
import shutil

import torch
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config

parser = argparse.ArgumentParser()
parser.add_argument("reference", type=pathlib.Path)
parser.add_argument("out", type=pathlib.Path)
for name, default in (("hidden", 1024), ("ffn", 2816), ("layers", 14), ("vision-hidden", 512), ("vision-layers", 6)):
    parser.add_argument("--" + name, type=int, default=default)
args = parser.parse_args()

torch.manual_seed(0)
config = json.loads((args.reference / "config.json").read_text())
text, vision = config["text_config"], config["vision_config"]
text.update(hidden_size=args.hidden, intermediate_size=args.ffn, num_hidden_layers=args.layers,
            num_attention_heads=args.hidden // 64, num_key_value_heads=args.hidden // 64)
text["layer_types"] = ["full_attention"] * args.layers
vision.update(hidden_size=args.vision_hidden, intermediate_size=4 * args.vision_hidden,
              num_hidden_layers=args.vision_layers, num_attention_heads=args.vision_hidden // 64)
model = LlavaForConditionalGeneration(LlavaConfig(
    vision_config=CLIPVisionConfig(**vision), text_config=Qwen2Config(**text), image_token_index=config["image_token_index"],
    image_seq_length=config["image_seq_length"], tie_word_embeddings=False))
model.save_pretrained(args.out)
for file in args.reference.iterdir():
    if not (args.out / file.name).exists():
        shutil.copy(file, args.out)
print(f"{sum(p.numel() for p in model.parameters())} values in {args.out}")
