"""merged_logits.py BASE ADAPTER MERGED: largest logit difference between peft on BASE and transformers on MERGED."""
import json
import sys

import torch
from peft import PeftModel
from transformers import LlavaForConditionalGeneration

base, adapter, merged = sys.argv[1:4]


def load(path):
    return LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32, output_loading_info=True)


model, _ = load(base)
model = PeftModel.from_pretrained(model, adapter).eval()
alone, info = load(merged)
alone.eval()
config = alone.config
torch.manual_seed(0)
features = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
ids = torch.cat([torch.full((1, features), config.image_token_index), torch.randint(0, 500, (1, 24))], 1)
pixels = torch.randn(1, 3, config.vision_config.image_size, config.vision_config.image_size)
with torch.no_grad():
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
    difference = (model(**inputs).logits - alone(**inputs).logits).abs().max().item()
print(json.dumps(dict(largest_difference=difference, missing=sorted(info["missing_keys"]), unexpected=sorted(info["unexpected_keys"]))))
