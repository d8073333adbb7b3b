"""A model directory, and an adapter for it, in transformers and peft: python interop.py MODEL_DIR ADAPTER_DIR|- BATCH.safetensors

Loads both, prints one line of JSON: versions, the keys that were missing or unexpected, and the loss of the batch, in f32. Works with
transformers 4.41 + peft 0.11 as well as with 5.x, whose ways to load and to count image tokens differ.
"""
import json
import pathlib
import sys
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, LlavaForConditionalGeneration

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
model_dir, adapter_dir, batch_path = sys.argv[1:]
major = int(transformers.__version__.split(".")[0])

model, info = LlavaForConditionalGeneration.from_pretrained(model_dir, torch_dtype=torch.float32, output_loading_info=True)
result = dict(
    transformers=transformers.__version__, peft=peft.__version__,
    missing=sorted(map(str, info["missing_keys"])), unexpected=sorted(map(str, info["unexpected_keys"])),
    mismatched=sorted(map(str, info["mismatched_keys"])), tied=bool(model.config.text_config.tie_word_embeddings),
    image_token=AutoConfig.from_pretrained(model_dir).image_token_index)

if (pathlib.Path(model_dir) / "processor_config.json").exists() and major >= 5:
    from transformers import AutoProcessor
    processor = AutoProcessor.from_pretrained(model_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    messages = [dict(role="system", content="You are a helpful assistant."), dict(role="user", content="<image>\nWhat is it?")]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    result["prompt_ids"] = tokenizer(text)["input_ids"]
    image_processor = processor.image_processor
    # SigLIP's does not crop.
    size = (getattr(image_processor, "crop_size", None) or image_processor.size)["height"]
    images = torch.zeros(3, size, size, dtype=torch.uint8)
    expanded = processor(text=text, images=[images], return_tensors="pt")["input_ids"][0]
    result["image_tokens"] = int((expanded == result["image_token"]).sum())

if adapter_dir != "-":
    config = peft.PeftConfig.from_pretrained(adapter_dir)
    model = peft.get_peft_model(model, config)
    loaded = model.load_adapter(adapter_dir, adapter_name="default")
    # The keys of the base model are missing in every adapter; what counts are the adapter's own.
    own = lambda key: "lora_" in key or "modules_to_save" in key
    result["adapter_missing"] = [key for key in loaded.missing_keys if own(key)]
    result["adapter_unexpected"] = list(loaded.unexpected_keys)

batch = load_file(batch_path)
image_id = result["image_token"]
rows = []
for ids, labels, mask in zip(batch["input_ids"].long(), batch["labels"].long(), batch["attention_mask"].long()):
    keep = torch.ones_like(ids, dtype=torch.bool)
    if major < 5:  # One <image> stands for all its features there.
        keep[1:] = ~((ids[1:] == image_id) & (ids[:-1] == image_id))
    rows.append((ids[keep], labels[keep], mask[keep]))
input_ids, labels, attention_mask = (torch.stack(column) for column in zip(*rows))
with torch.no_grad():
    output = model.eval()(input_ids=input_ids, labels=labels, attention_mask=attention_mask, pixel_values=batch["pixel_values"])
result["loss"] = float(output.loss)
print(json.dumps(result))
